"""MedFuse (Hayat et al. 2022, arXiv 2207.07027): an LSTM whose steps are the modalities that a sample has."""

import jax
import jax.numpy as jnp
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import Heads, WholeFusion, of_modalities
from remind_jax.models.fusion.soft_moe import Predictors, Routed, Tokens
from remind_jax.models.spec import FusionSpec
from remind_jax.ops.transformer import dropout


class MedFuse(WholeFusion):
    """An LSTM over the modalities in declared order, its last state, and a linear head for each modality by itself."""

    predicts = True

    def __init__(
        self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int
    ):
        super().__init__(spec)
        self.step = initial.linear(2 * width, 4 * width, rngs)  # of what is read and what was kept, to four gates
        self.out = initial.linear(width, num_outputs, rngs)
        self.experts = Heads(width, num_modalities, num_outputs, rngs)

    def _read(self, x: jax.Array, present: jax.Array) -> jax.Array:
        """Returns the state [b, d] after the modalities [b, m, d] that are there; a missing one leaves it as it was."""
        hidden = cell = jnp.zeros_like(x[:, 0])
        for i in range(x.shape[1]):
            gates = self.step(jnp.concatenate([x[:, i], hidden], axis=1))
            enter, keep, show, new = jnp.split(gates, 4, axis=1)
            after = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
            there = present[:, i, None]
            hidden = jnp.where(there, jax.nn.sigmoid(show) * jnp.tanh(after), hidden)
            cell = jnp.where(there, after, cell)
        return hidden

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Predicts from tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        pooled, present = of_modalities(x, tokens.owner), tokens.present
        features = self._read(pooled, present)
        logits = self.out(dropout(features, keys, self.spec.dropout, salt=0))
        experts = Predictors(self.experts(pooled), present)
        return Routed(x, jnp.zeros(x.shape[0]), features=features, logits=logits, experts=experts)
