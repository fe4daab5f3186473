"""Soft-MoE fusion block, with REMIND's residual routers when it is given groups (REMIND section 3.3)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import routing, soft_moe
from remind_jax.ops.transformer import attention, dropout, on_rows


class Tokens(NamedTuple):
    """Facts about the tokens that a block reads besides their values.

    Attributes:
      owner: modality of each token, numpy int [n]; tokens of a modality follow each other.
      observed: False at tokens of missing modalities [b, n].
      groups: combination of each sample [b]; the number of groups is the index of unseen ones.
    """

    owner: np.ndarray
    observed: jax.Array
    groups: jax.Array

    @property
    def present(self) -> jax.Array:
        """The modalities that each sample has, [b, m]."""
        return self.observed[:, np.unique(self.owner, return_index=True)[1]]


class Predictors(NamedTuple):
    """What predictors of parts of a sample say, such as one of each modality.

    Attributes:
      logits: [b, k, c].
      present: whether a sample has what the predictor reads, bool [b, k]; its loss counts there.
      weights: what each of c outputs weighs the k parts by, [b, k, c]; None where nothing is weighed.
    """

    logits: jax.Array
    present: jax.Array
    weights: jax.Array | None = None


class Routed(NamedTuple):
    """The result of a fusion block.

    Attributes:
      tokens: [b, n, d].
      open_rate: share of a sample's tokens whose gate was open [b].
      sums: sums over the batch for the penalty of the fusion; None where it has none.
      gate_values: the values that the gate compares with its threshold, [b, 1] or [b, n]; None unless the threshold is
        measured and group routers rest.
      features: one vector a sample that the fusion has made by itself, [b, d]; None where tokens are to be pooled.
      logits: predictions of heads of its own, [b, c]; None where the head of the network makes them.
      experts: predictors of parts of the sample next to that, with losses of their own.
      vectors: what stands for each modality, [b, m, d], where train rows are kept.
    """

    tokens: jax.Array
    open_rate: jax.Array
    sums: dict[str, jax.Array] | None = None
    gate_values: jax.Array | None = None
    features: jax.Array | None = None
    logits: jax.Array | None = None
    experts: Predictors | None = None
    vectors: jax.Array | None = None


class Route(NamedTuple):
    """Router logits of a block, [b, n, e, s] each: of the shared router, which the gate reads, and those in use."""

    shared: jax.Array
    used: jax.Array


def sinusoidal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns fixed sine and cosine patterns, one a group, so small that the shared router decides, [g, ...]."""
    del generator
    place = np.arange(math.prod(shape[1:]))
    angle = (1.0 + np.arange(shape[0]))[:, None] * 10_000.0 ** (-2.0 * (place // 2) / len(place))[None]
    wave = np.where(place[None] % 2 == 0, np.sin(angle), np.cos(angle))
    return (0.02 * wave).astype(np.float32).reshape(shape)


def normal(rngs: nnx.Rngs, fan_in: int, *dims: int) -> nnx.Param:
    """Declares random weights that keep the size of their inputs."""
    return initial.param(rngs, initial.normal(fan_in**-0.5), *dims)


def has_measured_gate(spec: FusionSpec) -> bool:
    """Returns whether the gate's threshold is measured in training instead of a number of the config."""
    return spec.group_routers and spec.gate_threshold == "auto"


class FusionBlock(nnx.Module):
    """Attention over all tokens, and experts.

    One that `keeps` train rows gives `Routed.vectors`: "rows" for its bank, which weights get when they are judged, or
    "centres" of them, which they get as stage 2 begins. A fusion with a penalty has its name in `penalised`, and
    `penalty`, a function of `Routed.sums` over the batch and section `objective` of a config.
    """

    whole, penalised, predicts, keeps = False, "", False, ""

    def __init__(self, spec: FusionSpec, width: int, rngs: nnx.Rngs):
        self.spec = spec
        self.attention_norm = initial.layer_norm(width, rngs)
        self.moe_norm = initial.layer_norm(width, rngs)
        self.query_key_value = initial.linear(width, 3 * width, rngs)
        self.output = initial.linear(width, width, rngs)

    def _declare_experts(self, width: int, rngs: nnx.Rngs) -> None:
        d, e, f, zero = width, self.spec.experts, self.spec.hidden, initial.constant(0.0)
        self.expert_in, self.expert_in_bias = normal(rngs, d, e, d, f), initial.param(rngs, zero, e, f)
        self.expert_out, self.expert_out_bias = normal(rngs, f, e, f, d), initial.param(rngs, zero, e, d)

    @property
    def experts(self) -> soft_moe.Experts:
        """The weights of all experts."""
        weights = (self.expert_in, self.expert_in_bias, self.expert_out, self.expert_out_bias)
        return soft_moe.Experts(*(weight[...] for weight in weights))

    @jax.named_scope("attention")
    def attend(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Applies self-attention to normalised tokens, [b, n, d]; no token reads those where `mask` [b, n] is False."""
        query, key, value = jnp.split(on_rows(self.query_key_value, x), 3, axis=-1)
        return on_rows(self.output, attention(query, key, value, heads=self.spec.heads, mask=mask))


class SoftMoEBlock(FusionBlock):
    """Self-attention over all tokens, then experts that tokens reach through soft routing."""

    def __init__(self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs):
        super().__init__(spec, width, rngs)
        d, e, s, zero = width, spec.experts, spec.slots, initial.constant(0.0)
        self.router = normal(rngs, d, d, e, s)
        self.router_scale = initial.param(rngs, initial.constant(spec.scale))
        if has_measured_gate(spec):
            self.gate_threshold = initial.param(rngs, zero)  # measured before group routers act
        if spec.group_routers and spec.router_rank:
            # Only one of the two is zero, which makes routers the shared one at first: both would have no gradient.
            self.group_router_in = normal(rngs, d, num_modalities, d, spec.router_rank)
            self.group_router_out = initial.param(rngs, zero, num_modalities, spec.router_rank, e, s)
        elif spec.group_routers:
            rule = {"zero": zero, "sinusoidal": sinusoidal}[spec.residual_init]
            self.group_router = initial.param(rngs, rule, num_groups, d, e, s)
        self._declare_experts(width, rngs)

    def _routers(self, tokens: Tokens, is_open: jax.Array, scale: jax.Array, normalize: bool) -> jax.Array:
        """Returns each sample's router, [b, d, e, s]: its combination's where the gate is open [b], or the shared."""
        shared, options = self.router[...], {"normalize": normalize, "add_after_norm": self.spec.add_after_norm}
        if self.spec.router_rank:
            present = tokens.present & is_open[:, None]
            residual = routing.composed_residuals(self.group_router_in[...], self.group_router_out[...], present)
            return routing.effective_routers(shared, residual, scale, **options)
        table = self.group_router[...]
        return routing.group_routers(shared, table, jnp.where(is_open, tokens.groups, len(table)), scale, **options)

    def _gate_is_open(self, plain: jax.Array) -> jax.Array:
        """Returns whether the gate is open under the shared router's logits [b, n, e, s]; bool [b, n]."""
        spec = self.spec
        threshold = self.gate_threshold[...].astype(jnp.float32) if has_measured_gate(spec) else spec.gate_threshold
        is_open = routing.gate_is_open(plain, spec.gate_metric, threshold, spec.gate_granularity)
        return jnp.broadcast_to(is_open, plain.shape[:2])

    def _logits(self, x: jax.Array, tokens: Tokens, gate: str | jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns router logits [b, n, e, s] of tokens [b, n, d], and the share of tokens with an open gate [b]."""
        spec, normalize = self.spec, soft_moe.PRESETS[self.spec.preset].normalize
        scale = self.router_scale[...] if spec.learn_scale else jax.lax.stop_gradient(self.router_scale[...])
        shared = self.router[...]
        shared_only = scale * soft_moe.unit_length(shared, axis=0) if normalize else shared
        if isinstance(gate, str) and gate == "never":
            return routing.token_logits(x, shared_only, normalize), jnp.zeros(x.shape[0])

        def grouped(is_open: jax.Array) -> jax.Array:
            return routing.token_logits(x, self._routers(tokens, is_open, scale, normalize), normalize)

        everywhere = jnp.ones(x.shape[0], bool)
        if isinstance(gate, str) and gate == "always":
            return grouped(everywhere), jnp.ones(x.shape[0])
        plain = routing.token_logits(x, shared_only, normalize)
        is_open = self._gate_is_open(plain)
        if not isinstance(gate, str):
            is_open = is_open & gate
        open_rate = jnp.mean(is_open.astype(jnp.float32), axis=1)
        if spec.gate_granularity == "token":
            return jnp.where(is_open[:, :, None, None], grouped(everywhere), plain), open_rate
        # All tokens of a sample take the same router, so it is chosen before the product.
        return grouped(is_open[:, 0]), open_rate

    def _mix(self, x, tokens, mask, gate, keys) -> Routed:
        with jax.named_scope("router"):
            logits, open_rate = self._logits(x, tokens, gate)
            values = None
            if isinstance(gate, str) and gate == "never" and has_measured_gate(self.spec):
                values = routing.gate_values(logits, self.spec.gate_metric, self.spec.gate_granularity)
        mixed = soft_moe.soft_moe(x, logits, self.experts, soft_moe.PRESETS[self.spec.preset], mask)
        return Routed(dropout(mixed, keys, self.spec.dropout, salt=1), open_rate, gate_values=values)

    def _attended(self, x: jax.Array, mask: jax.Array | None, keys: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the tokens that the experts' output is added to, and the tokens that are routed, [b, n, d] each."""
        spec, base = self.spec, 1.0 if self.spec.residual else 0.0
        if spec.norm == "pre":
            attended = self.attend(self.attention_norm(x), mask)
            x = base * x + dropout(attended, keys, spec.dropout, salt=0)
            return x, self.moe_norm(x)
        attended = self.attend(x, mask)
        x = self.attention_norm(base * x + dropout(attended, keys, spec.dropout, salt=0))
        return x, x

    def route(self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str) -> Route:
        """Returns the logits by which tokens are routed in evaluation; arguments are as for a call."""
        _, routed = self._attended(x, mask, None)
        return Route(self._logits(routed, tokens, "never")[0], self._logits(routed, tokens, gate)[0])

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Fuses tokens [b, n, d]; `mask` [b, n] is False at those to hide, and random keys [b] turn dropout on."""
        base = 1.0 if self.spec.residual else 0.0
        x, routed = self._attended(x, mask, keys)
        mixed = self._mix(routed, tokens, mask, gate, keys)
        x = base * x + mixed.tokens
        return mixed._replace(tokens=x if self.spec.norm == "pre" else self.moe_norm(x))
