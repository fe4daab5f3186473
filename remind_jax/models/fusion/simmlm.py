"""SimMLM (Li et al. 2025): an expert a modality, mixed by a gate over the modalities that a sample has."""

import jax
import jax.numpy as jnp
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import Experts, WholeFusion, of_modalities
from remind_jax.models.fusion.soft_moe import Predictors, Routed, Tokens
from remind_jax.models.spec import FusionSpec
from remind_jax.ops.transformer import on_rows, softmax

_ABSENT = -1e30


def gate_weights(scores: jax.Array, present: jax.Array) -> jax.Array:
    """Returns what each expert counts: a softmax over the modalities present, [b, m] -> [b, m], zeros for none."""
    return jnp.where(present, softmax(jnp.where(present, scores, _ABSENT)), 0.0)


class SimMLM(WholeFusion):
    """Logits of experts of single modalities, weighed by a gate that sees the modalities that are there."""

    predicts = True

    def __init__(
        self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int
    ):
        super().__init__(spec)
        self.experts = Experts(spec, width, num_modalities, num_outputs, rngs)
        self.gate_norm = initial.layer_norm(width, rngs)
        self.gate_in = initial.linear(num_modalities * width, spec.hidden, rngs)
        self.gate_out = initial.linear(spec.hidden, num_modalities, rngs)

    def _scores(self, pooled: jax.Array, present: jax.Array) -> jax.Array:
        """Scores the modalities of samples, [b, m, d] -> [b, m], by those that are there."""
        seen = jnp.where(present[:, :, None], self.gate_norm(pooled), 0.0)
        flat = seen.reshape(seen.shape[0], seen.shape[1] * seen.shape[2])
        return on_rows(self.gate_out, jax.nn.gelu(self.gate_in(flat)))

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Predicts from tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        pooled = of_modalities(x, tokens.owner)
        with jax.named_scope("experts"):
            logits = self.experts(pooled, keys)
        with jax.named_scope("gate"):
            weights = gate_weights(self._scores(pooled, tokens.present), tokens.present)
        return Routed(
            x,
            jnp.zeros(x.shape[0]),
            features=jnp.einsum("bmd,bm->bd", pooled, weights),
            logits=jnp.einsum("bmc,bm->bc", logits, weights),
            experts=Predictors(logits, tokens.present),
        )
