"""Fusions that are one module, whatever the number of blocks, and late fusion, the simplest of them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.soft_moe import Predictors, Routed, Tokens, normal
from remind_jax.models.spec import FusionSpec
from remind_jax.ops.transformer import dropout


class WholeFusion(nnx.Module):
    """A fusion that makes one vector a sample by itself, [b, n, d] -> `Routed.features`.

    One that `predicts` is made with the number of outputs, has the heads of the network, and gives `Routed.logits`.
    """

    whole, penalised, predicts, keeps = True, "", False, ""

    def __init__(self, spec: FusionSpec):
        self.spec = spec


def of_modalities(x: jax.Array, owner: np.ndarray) -> jax.Array:
    """Returns the mean token of each modality, [b, n, d] -> [b, m, d]; `owner` has the modality of each token, [n]."""
    shares = (np.arange(owner.max() + 1)[:, None] == owner[None]) / np.bincount(owner)[:, None]
    return jnp.einsum("mn,bnd->bmd", jnp.asarray(shares, x.dtype), x)


def weighted(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the sum over modalities by the weights of each sample, [b, m, ...] and [b, m] -> [b, ...]."""
    return jnp.einsum("bm...,bm->b...", x, weights)


def equal_weights(x: jax.Array, present: jax.Array) -> jax.Array:
    """Returns equal weights of the modalities that a sample has, [b, m] of the type of x; zeros where it has none."""
    return present.astype(x.dtype) / jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1).astype(x.dtype)


def mean_present(x: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the mean over the modalities that a sample has, [b, m, ...] -> [b, ...]; zeros for one that has none."""
    return weighted(x, equal_weights(x, present))


class Heads(nnx.Module):
    """A linear map for each of k vectors, [b, k, d] -> [b, k, c]."""

    def __init__(self, width: int, count: int, outputs: int, rngs: nnx.Rngs):
        self.head = normal(rngs, width, count, width, outputs)
        self.head_bias = initial.param(rngs, initial.constant(0.0), count, outputs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies to each vector its own map."""
        return jnp.einsum("bkd,kdc->bkc", x, self.head[...]) + self.head_bias[...][None]


class Experts(Heads):
    """A network with a hidden layer for each of k vectors, [b, k, d] -> [b, k, c]."""

    def __init__(self, spec: FusionSpec, width: int, count: int, outputs: int, rngs: nnx.Rngs):
        super().__init__(spec.hidden, count, outputs, rngs)
        self.dropout = spec.dropout
        self.norm = initial.layer_norm(width, rngs)
        self.hidden = normal(rngs, width, count, width, spec.hidden)
        self.hidden_bias = initial.param(rngs, initial.constant(0.0), count, spec.hidden)

    def __call__(self, x: jax.Array, keys: jax.Array | None = None, salt: int = 0) -> jax.Array:
        """Applies to each vector its own network; `keys` [b] turn dropout on."""
        hidden = jnp.einsum("bkd,kdf->bkf", self.norm(x), self.hidden[...]) + self.hidden_bias[...][None]
        return super().__call__(dropout(jax.nn.gelu(hidden), keys, self.dropout, salt=salt))


class LateFusion(WholeFusion):
    """The mean logits of networks of single modalities, of those that a sample has; `_weights` may make it another."""

    predicts = True

    def __init__(
        self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int
    ):
        super().__init__(spec)
        self.experts = Experts(spec, width, num_modalities, num_outputs, rngs)

    def _weights(self, pooled: jax.Array, present: jax.Array) -> jax.Array:
        """Returns what each modality counts, [b, m, d] and bool [b, m] -> [b, m]."""
        return equal_weights(pooled, present)

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Predicts from tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        pooled = of_modalities(x, tokens.owner)
        with jax.named_scope("experts"):
            logits = self.experts(pooled, keys)
        with jax.named_scope("gate"):
            weights = self._weights(pooled, tokens.present)
        return Routed(
            x,
            jnp.zeros(x.shape[0]),
            features=weighted(pooled, weights),
            logits=weighted(logits, weights),
            experts=Predictors(logits, tokens.present),
        )
