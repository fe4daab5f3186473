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

    whole, penalised, predicts, staged = True, False, False, False

    def __init__(self, spec: FusionSpec):
        self.spec = spec


def is_shut(gate: str | jax.Array) -> bool | jax.Array:
    """Returns whether the gate of a call is `never`, or a bool () that is False: that of a fusion's first stage."""
    return gate == "never" if isinstance(gate, str) else ~gate


def of_modalities(x: jax.Array, owner: np.ndarray) -> jax.Array:
    """Returns the mean token of each modality, [b, n, d] -> [b, m, d]; `owner` has the modality of each token, [n]."""
    shares = (np.arange(owner.max() + 1)[:, None] == owner[None]) / np.bincount(owner)[:, None]
    return jnp.einsum("mn,bnd->bmd", jnp.asarray(shares, x.dtype), x)


def mean_present(x: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the mean over the modalities that a sample has, [b, m, ...] -> [b, ...]; zeros for one that has none."""
    weights = present.astype(x.dtype) / jnp.maximum(jnp.sum(present, axis=1, keepdims=True), 1).astype(x.dtype)
    return jnp.einsum("bm...,bm->b...", x, weights)


class Experts(nnx.Module):
    """One network with a hidden layer and a head for each modality, [b, m, d] -> logits [b, m, c]."""

    def __init__(self, spec: FusionSpec, width: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int):
        d, m, f, zero = width, num_modalities, spec.hidden, initial.constant(0.0)
        self.dropout = spec.dropout
        self.norm = initial.layer_norm(d, rngs)
        self.hidden, self.hidden_bias = normal(rngs, d, m, d, f), initial.param(rngs, zero, m, f)
        self.head, self.head_bias = normal(rngs, f, m, f, num_outputs), initial.param(rngs, zero, m, num_outputs)

    def __call__(self, x: jax.Array, keys: jax.Array | None, salt: int = 0) -> jax.Array:
        """Predicts from one vector a modality; `keys` [b] turn dropout on."""
        hidden = jnp.einsum("bmd,mdf->bmf", self.norm(x), self.hidden[...]) + self.hidden_bias[...][None]
        hidden = dropout(jax.nn.gelu(hidden), keys, self.dropout, salt=salt)
        return jnp.einsum("bmf,mfc->bmc", hidden, self.head[...]) + self.head_bias[...][None]


class LateFusion(WholeFusion):
    """The mean logits of networks of single modalities, of those that a sample has."""

    predicts = True

    def __init__(
        self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int
    ):
        super().__init__(spec)
        self.experts = Experts(spec, width, num_modalities, rngs, num_outputs)

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Predicts from tokens [b, n, d]; random keys [b] turn dropout on, `mask` and `gate` change nothing."""
        del mask, gate
        pooled = of_modalities(x, tokens.owner)
        with jax.named_scope("experts"):
            logits = self.experts(pooled, keys)
        return Routed(
            x,
            jnp.zeros(x.shape[0]),
            features=mean_present(pooled, tokens.present),
            logits=mean_present(logits, tokens.present),
            experts=Predictors(logits, tokens.present),
        )
