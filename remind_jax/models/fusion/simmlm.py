"""SimMLM (Li et al. 2025): an expert a modality, mixed by a gate over the modalities that a sample has."""

import jax
import jax.numpy as jnp
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import LateFusion
from remind_jax.models.spec import FusionSpec
from remind_jax.ops.transformer import on_rows, softmax

_ABSENT = -1e30


def gate_weights(scores: jax.Array, present: jax.Array) -> jax.Array:
    """Returns what each expert counts: a softmax over the modalities present, [b, m] -> [b, m], zeros for none."""
    return jnp.where(present, softmax(jnp.where(present, scores, _ABSENT)), 0.0)


class SimMLM(LateFusion):
    """Logits of experts of single modalities, weighed by a gate that sees the modalities that are there."""

    def __init__(
        self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int
    ):
        super().__init__(spec, width, num_groups, num_modalities, rngs, num_outputs)
        self.gate_norm = initial.layer_norm(width, rngs)
        self.gate_in = initial.linear(num_modalities * width, spec.hidden, rngs)
        self.gate_out = initial.linear(spec.hidden, num_modalities, rngs)

    def _weights(self, pooled: jax.Array, present: jax.Array) -> jax.Array:
        seen = jnp.where(present[:, :, None], self.gate_norm(pooled), 0.0)
        flat = seen.reshape(seen.shape[0], seen.shape[1] * seen.shape[2])
        return gate_weights(on_rows(self.gate_out, jax.nn.gelu(self.gate_in(flat))), present)
