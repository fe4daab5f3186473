"""The whole network as a module: encoders, tokens for missing modalities, fusion, pooling, head."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from remind_jax.errors import UserError
from remind_jax.models import initial
from remind_jax.models.encoders import registry
from remind_jax.models.encoders.patch import PatchEncoder, embed_rows
from remind_jax.models.fusion import FUSIONS
from remind_jax.models.fusion.late import of_modalities
from remind_jax.models.fusion.soft_moe import Predictors, Route, Routed, Tokens
from remind_jax.models.spec import ModalityInput, ModelSpec
from remind_jax.ops import draws, imputation, losses
from remind_jax.ops.transformer import dropout

Params = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]

STORED = "features/"
"""Before the name of a modality: what its frozen trunk has found, in a batch in place of its input."""
SOURCE = "source/"
"""Before the name of a modality whose input a batch has of some samples only: which they are, int [blocks, k].

The b samples of a batch are cut into blocks of b / blocks in turn, so that each device has whole blocks. The input is
[blocks, k, ...], and all samples that have the modality are among the k different ones of their block.
"""


Mean = Callable[[jax.Array, int], jax.Array]
"""Logits with an axis of k predictors, and that axis -> logits whose predictions are the means of theirs."""


class Output(NamedTuple):
    """The output of the network.

    Attributes:
      logits: [b, c]; of several members those of their mean predictions, see `Mean`.
      features: pooled tokens [b, d], mean of the members.
      open_rate: share of tokens whose routing gate was open [b].
      statistics: new running statistics of batch norms by path, if asked for.
      tokens: tokens as the fusion received them [b, n, d].
      observed: False at the tokens of missing modalities [b, n].
      routing: sums over the batch for the penalty of the fusion, of each block.
      members: logits of each member [b, k, c], where there are several.
      gate_values: gate values of each block, see `Routed`; with several members, those of each sample in turn.
      experts: predictors of parts of a sample, where the fusion has some.
      vectors: what stands for each modality [b, m, d], where the fusion keeps train rows.
    """

    logits: jax.Array
    features: jax.Array
    open_rate: jax.Array
    statistics: Params = {}  # noqa: RUF012 never changed, and a NamedTuple has no default factory
    tokens: jax.Array | None = None
    observed: jax.Array | None = None
    routing: tuple[dict[str, jax.Array], ...] = ()
    members: jax.Array | None = None
    gate_values: tuple[jax.Array, ...] = ()
    experts: Predictors | None = None
    vectors: jax.Array | None = None


class Routes(NamedTuple):
    """Router logits of each fusion block, the `observed` tokens [b, n], and the modality of each token [n]."""

    blocks: tuple[Route, ...]
    observed: jax.Array
    owner: jax.Array


_MEASURED = ("/running_mean", "/running_variance", "/bank", "/bank_present", "/centres")


def is_statistic(path: str) -> bool:
    """Returns whether a path is measured and not trained: batch norm's statistics, the threshold of a gate, or what is
    kept of train rows.
    """
    return path.endswith(_MEASURED) or is_gate_threshold(path)


def is_gate_threshold(path: str) -> bool:
    """Returns whether a path names the measured threshold of a gate."""
    return path.endswith("/gate_threshold")


def is_joint(path: str) -> bool:
    """Returns whether a path is of what the predictors of single modalities do without."""
    return path.startswith(("block_", "head/", "wide")) and "/experts/" not in path


def is_group_router(path: str) -> bool:
    """Returns whether a path names residual routers of combinations, as a table or as the pairs that compose them."""
    return path.rpartition("/")[2] in ("group_router", "group_router_in", "group_router_out")


def _chosen(x: jax.Array, source: jax.Array | None) -> jax.Array:
    """Takes the samples [b, ...] that an encoder runs on, [blocks * k, ...]; all without a choice, see `SOURCE`."""
    if source is None:
        return x
    blocks = x.reshape(source.shape[0], -1, *x.shape[1:])
    # Block by block, so that nothing crosses devices.
    return jax.vmap(lambda block, own: block[own])(blocks, source).reshape(-1, *x.shape[1:])


def _spread(tokens: jax.Array, source: jax.Array | None, count: int) -> jax.Array:
    """Puts tokens of chosen samples [blocks * k, t, d] in their places among all [b, t, d], zeros in the others."""
    if source is None:
        return tokens
    blocks, k = source.shape
    zeros = jnp.zeros((count // blocks, *tokens.shape[1:]), tokens.dtype)
    put = jax.vmap(lambda own, x: zeros.at[own].set(x, unique_indices=True, mode="promise_in_bounds"))
    return put(source, tokens.reshape(blocks, k, *tokens.shape[1:])).reshape(count, *tokens.shape[1:])


class _Encoders(nnx.Module):
    """One encoder a modality, as attributes named after the modalities."""

    def __init__(self, spec: ModelSpec, inputs: Mapping[str, ModalityInput], rngs: nnx.Rngs):
        for name, modality in inputs.items():
            setattr(self, name, registry.make_encoder(spec, modality, rngs))


class _Members(nnx.Module):
    """The parts that each of k predictors has for itself: a factor of every input of the fusion, and a head."""

    def __init__(self, count: int, num_modalities: int, width: int, num_classes: int, rngs: nnx.Rngs):
        # Random signs: members see inputs so different that they do not become one (Wen et al. 2020).
        self.input_scale = initial.param(rngs, initial.signs, count, num_modalities, width)
        self.head = initial.param(rngs, initial.normal(width**-0.5), count, width, num_classes)
        self.head_bias = initial.param(rngs, initial.constant(0.0), count, num_classes)

    def spread(
        self, tokens: jax.Array, owner: np.ndarray, groups: jax.Array, mask: jax.Array | None, keys: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
        """Repeats each sample k times in turn: tokens [b * k, n, d] and their facts; `owner` has modalities [n]."""
        factors = self.input_scale[...][:, owner]
        count = len(factors)
        tokens = rearrange(tokens[:, None] * factors[None], "b k n d -> (b k) n d")
        mask = None if mask is None else jnp.repeat(mask, count, axis=0)
        if keys is not None:
            keys = draws.fold_in(keys[:, None], jnp.arange(count)[None]).reshape(-1)
        return tokens, jnp.repeat(groups, count), mask, keys

    def logits(self, features: jax.Array) -> jax.Array:
        """Applies the heads, [b, k, d] -> [b, k, c]."""
        return jnp.einsum("bkd,kdc->bkc", features, self.head[...]) + self.head_bias[...][None]


class _Imputation(nnx.Module):
    """Learned vectors for missing modalities; next to a modality part, the group part starts at zero."""

    def __init__(self, kind: str, width: int, num_modalities: int, num_groups: int, rngs: nnx.Rngs):
        def normal(*rows: int) -> nnx.Param:
            return initial.param(rngs, initial.normal(0.02), *rows, width)

        if kind == "mean":
            self.running_mean = nnx.BatchStat(initial.by(initial.constant(0.0))(rngs.params(), (num_modalities, width)))
        if kind in ("modality", "modality+group"):
            self.modality = normal(num_modalities)
        if kind == "group":
            self.group = normal(num_groups)
        elif kind == "bank":
            self.group = normal(num_groups, num_modalities)
        elif kind == "modality+group":
            self.group = initial.param(rngs, initial.constant(0.0), num_groups, width)

    def __call__(self, groups: jax.Array) -> jax.Array:
        tables = [getattr(self, name)[...] if hasattr(self, name) else None for name in ("modality", "group")]
        if hasattr(self, "running_mean"):
            tables[0] = self.running_mean[...]
        return imputation.imputed_tokens(groups, *tables)

    def measure(self, x: jax.Array, present: jax.Array, axis_name: str | None) -> None:
        """Moves the running means, see `imputation.running_means`."""
        self.running_mean[...] = imputation.running_means(self.running_mean[...], x, present, axis_name)


class Model(nnx.Module):
    """Encoders of all modalities, fusion blocks and a linear head."""

    def __init__(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, ModalityInput],
        num_groups: int,
        num_classes: int,
        rngs: nnx.Rngs,
        mean: Mean = losses.mean_prediction,
    ):
        self.mean = mean
        self.spec, self.modalities = spec, tuple(inputs)
        self.trunks = tuple(name for name, modality in inputs.items() if registry.has_trunk(modality.encoder))
        self.encoders = _Encoders(spec, inputs, rngs)
        self.imputation = _Imputation(spec.imputation, spec.width, len(inputs), num_groups, rngs)
        if spec.modality_embedding:
            self.modality_embedding = initial.param(rngs, initial.normal(0.02), len(inputs), spec.width)
        if spec.mask_input:
            self.mask_input = initial.param(rngs, initial.constant(0.0), len(inputs), spec.width)
        fusion, sizes = FUSIONS[spec.fusion.kind], (spec.width, num_groups, len(inputs))
        self.blocks = 1 if fusion.whole else spec.fusion.blocks
        outputs = {"num_outputs": num_classes} if fusion.predicts else {}
        for i in range(self.blocks):
            setattr(self, f"block_{i}", fusion(spec.fusion, *sizes, rngs, **outputs))
        if spec.pooling == "attention":
            self.pool_query = initial.param(rngs, initial.normal(spec.width**-0.5), spec.width)
        if spec.wide:
            self.wide = initial.param(rngs, initial.constant(0.0), len(self.owner), spec.width, num_classes)
        if fusion.predicts and spec.members > 1:
            raise UserError(f"model.members={spec.members}: fusion.kind={spec.fusion.kind} has heads of its own; set 1")
        if spec.members > 1:
            self.members = _Members(spec.members, len(inputs), spec.width, num_classes, rngs)
        elif not fusion.predicts:
            vectors = len(inputs) if spec.pooling == "modalities" and not fusion.whole else 1
            self.head = initial.linear(vectors * spec.width, num_classes, rngs)

    def tokens(
        self,
        batch: Batch,
        keys: jax.Array | None = None,
        statistics: bool = False,
        axis_name: str | None = None,
        resting: bool = False,
        means: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns tokens of all modalities [b, n, d], learned ones for missing modalities, and observed bool [b, n]."""
        encoded, together = [], self._stacked(batch)
        for i, name in enumerate(self.modalities):
            if name in together:
                encoded.append(together[name])
                continue
            encoder, stored = getattr(self.encoders, name), STORED + name in batch
            source = None if stored else batch.get(SOURCE + name)
            modality_keys = None if keys is None else draws.fold_in(_chosen(keys, source), i)
            norms = {}
            if statistics and isinstance(encoder, registry.BATCH_NORMALISED):
                norms = {"present": _chosen(batch["present"][:, i], source), "axis_name": axis_name}
            with jax.named_scope(f"encoders/{name}"):
                if stored:
                    encoded.append(encoder.project(batch[STORED + name].astype(self.dtype), modality_keys))
                    continue
                x = batch[name] if source is None else batch[name].reshape(-1, *batch[name].shape[2:])
                if resting and name in self.trunks:
                    found = encoder.project(encoder.features(x, None), modality_keys)
                else:
                    x = x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
                    found = encoder(x, modality_keys, **norms)
                encoded.append(_spread(found, source, batch["group"].shape[0]))
        owner = self.owner
        if means:
            pooled = of_modalities(jnp.concatenate(encoded, axis=1), owner)
            self.imputation.measure(pooled, batch["present"], axis_name)
        shape = (batch["group"].shape[0], len(encoded), self.spec.width)  # which may be a symbol, having no len
        imputed = jnp.broadcast_to(self.imputation(batch["group"]), shape)[:, owner]
        observed = batch["present"][:, owner]
        # One mask for the tokens of all encoders, so that one operation draws it.
        tokens = dropout(jnp.concatenate(encoded, axis=1), keys, self.spec.encoder_dropout, salt=2_000)
        tokens = imputation.fill_missing(tokens, observed, imputed)
        if self.spec.modality_embedding:
            tokens = tokens + self.modality_embedding[owner][None]
        if self.spec.mask_input:
            tokens = tokens + (batch["present"].astype(tokens.dtype) @ self.mask_input[...])[:, None]
        return tokens, observed

    @jax.named_scope("encoders/stacked")
    def _stacked(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the tokens [b, 1, d] of those modalities whose encoders are one product together, by name."""
        encoders = {name: getattr(self.encoders, name) for name in self.modalities}
        dense = {name: x for name, x in encoders.items() if SOURCE + name not in batch}
        # By name, as their weights lie in a vector of a step.
        names = sorted(name for name, x in dense.items() if isinstance(x, PatchEncoder) and x.is_stacked)
        if len(names) < 2:
            return {}
        tokens = embed_rows([encoders[x] for x in names], [batch[x].astype(self.dtype) for x in names])
        return dict(zip(names, jnp.split(tokens, len(names), axis=1), strict=True))

    @property
    def dtype(self) -> np.dtype:
        """Type of the weights, and so of all computation with them."""
        return jax.tree.leaves(nnx.state(self.block_0, nnx.Param))[0].dtype

    @property
    def owner(self) -> np.ndarray:
        """Modality of each token, int [n]."""
        return np.repeat(np.arange(len(self.modalities)), [getattr(self.encoders, x).tokens for x in self.modalities])

    def _pool(self, x: jax.Array, observed: jax.Array) -> jax.Array:
        """Pools tokens to one vector a sample, [b, n, d] -> [b, d], or [b, m d] of all modalities side by side.

        `observed` [b, n] is False at imputed tokens.
        """
        if self.spec.pooling == "modalities":
            return rearrange(of_modalities(x, self.owner), "b m d -> b (m d)")
        if self.spec.pooling == "first":
            return x[:, 0]
        if self.spec.pooling == "attention":
            weights = jax.nn.softmax(jnp.einsum("bnd,d->bn", x, self.pool_query[...]), axis=-1)
        elif self.spec.pooling == "observed":
            weights = observed.astype(x.dtype)
            weights = weights / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1.0)
        else:
            return jnp.mean(x, axis=1)
        return jnp.einsum("bnd,bn->bd", x, weights.astype(x.dtype))

    def __call__(
        self,
        batch: Batch,
        *,
        gate: str | jax.Array,
        keys: jax.Array | None = None,
        statistics: bool = False,
        axis_name: str | None = None,
        resting: bool = False,
        means: bool = False,
    ) -> Output:
        """Runs the network on a batch.

        Args:
          batch: the input of every modality under its name, of some samples with `SOURCE`, or stored features under
            `STORED` and its name; `present` bool [b, m] and `group` int [b].
          gate: whether group routers act: `gated`, `always` or `never`; a bool () is `gated` where it is True, so that
            one program serves for both.
          keys: random keys [b] that turn dropout on.
          statistics: whether batch norms of encoders use the statistics of this batch and update the running ones.
          means: whether the running means of modalities are updated.
          axis_name: axis of the devices that share the batch, when each runs a program of its own.
          resting: whether trunks of encoders run without dropout, as frozen ones do; stored features never have any.
        """
        tokens = self.tokens(batch, keys, statistics, axis_name, resting, means)
        return self.fuse(*tokens, batch["group"], gate=gate, keys=keys)

    def fuse(
        self,
        tokens: jax.Array,
        observed: jax.Array,
        groups: jax.Array,
        *,
        gate: str | jax.Array,
        keys: jax.Array | None = None,
    ) -> Output:
        """Runs the layers after the encoders: fusion blocks, pooling and head; `gate` and `keys` as for a call.

        `tokens` are those of all modalities [b, n, d], `observed` [b, n] is False at those of missing ones, and
        `groups` [b] has the number of groups for a combination not seen in training.
        """
        x, mask, present, owner = tokens, observed if self.spec.fusion.mask_missing else None, observed, self.owner
        members = self.spec.members
        if members > 1:
            x, groups, mask, keys = self.members.spread(x, owner, groups, mask, keys)
            present = jnp.repeat(observed, members, axis=0)
        passes, known = [], Tokens(owner, present, groups)
        for i in range(self.blocks):
            block = getattr(self, f"block_{i}")
            block_keys = None if keys is None else draws.fold_in(keys, 1_000 + i)
            with jax.named_scope(f"block_{i}"):
                passes.append(block(x, known, mask, gate, block_keys))
            x = passes[-1].tokens
        open_rate = jnp.mean(jnp.stack([routed.open_rate for routed in passes]), axis=0)
        sums = tuple(routed.sums for routed in passes if routed.sums is not None)
        values = tuple(routed.gate_values for routed in passes if routed.gate_values is not None)
        with jax.named_scope("head"):
            output = self._predict(passes[-1], present, open_rate, tokens, observed)
        return output._replace(routing=sums, gate_values=values, experts=passes[-1].experts, vectors=passes[-1].vectors)

    def route(self, batch: Batch, *, gate: str) -> Routes:
        """Returns the router logits of a batch in evaluation; the model has one predictor, without members."""
        x, observed = self.tokens(batch)
        mask, routes = observed if self.spec.fusion.mask_missing else None, []
        known = Tokens(self.owner, observed, batch["group"])
        for i in range(self.spec.fusion.blocks):
            block = getattr(self, f"block_{i}")
            routes.append(block.route(x, known, mask, gate))
            x = block(x, known, mask, gate, None).tokens
        return Routes(tuple(routes), observed, jnp.asarray(self.owner))

    def _wide_logits(self, tokens: jax.Array, observed: jax.Array) -> jax.Array:
        """Applies a linear map to the tokens of present modalities, [b, c]; zeros [1, 1] without one."""
        if not self.spec.wide:
            return jnp.zeros((1, 1), tokens.dtype)
        return jnp.einsum("bnd,ndc->bc", jnp.where(observed[:, :, None], tokens, 0.0), self.wide[...])

    def _predict(
        self, fused: Routed, present: jax.Array, open_rate: jax.Array, tokens: jax.Array, observed: jax.Array
    ) -> Output:
        """Applies the heads; `fused`, `present` [b * k, n] and `open_rate` [b * k] are of all members in turn."""
        features = self._pool(fused.tokens, present) if fused.features is None else fused.features
        if self.spec.members == 1:
            logits = self.head(features) if fused.logits is None else fused.logits
            logits = logits + self._wide_logits(tokens, observed)
            return Output(logits, features, open_rate, tokens=tokens, observed=observed)
        features = rearrange(features, "(b k) d -> b k d", k=self.spec.members)
        members = self.members.logits(features) + self._wide_logits(tokens, observed)[:, None]
        return Output(
            self.mean(members, 1),
            jnp.mean(features, axis=1),
            jnp.mean(open_rate.reshape(-1, self.spec.members), axis=1),
            tokens=tokens,
            observed=observed,
            members=members,
        )
