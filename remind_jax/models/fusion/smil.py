"""SMIL (Ma et al. 2021): missing modalities are mixtures of centres of known ones, features are perturbed by what a
network says, and both networks are taught by how well the main one does after a step on samples that miss something.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.fusion.late import WholeFusion, of_modalities
from remind_jax.models.fusion.soft_moe import Routed, Tokens
from remind_jax.models.spec import FusionSpec
from remind_jax.ops import draws
from remind_jax.ops.transformer import dropout

MAIN = "block_0/main/"
"""Begins the paths of the main network, which a step of the inner loop moves."""


def _identity(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    del generator
    return np.broadcast_to(np.eye(shape[-1], dtype=np.float32), shape).copy()


def _noise(keys: jax.Array | None, shape: tuple[int, ...], salt: int) -> jax.Array | float:
    """Draws normal noise [b, *shape] by keys [b]; 0 without."""
    if keys is None:
        return 0.0
    return jax.vmap(lambda key: jax.random.normal(key, shape))(draws.fold_in(keys, salt))


class _Main(nnx.Module):
    """The network that predicts from completed vectors."""

    def __init__(self, spec: FusionSpec, inputs: int, rngs: nnx.Rngs, num_outputs: int):
        self.hidden, self.out = (
            initial.linear(inputs, spec.hidden, rngs),
            initial.linear(spec.hidden, num_outputs, rngs),
        )


class _Factors(nnx.Module):
    """Positive factors of features, around 1 at first and with the spread of a normal where keys are given."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = initial.param(rngs, initial.constant(0.0), inputs, outputs)
        self.bias = initial.param(rngs, initial.constant(math.log(math.e - 1.0)), outputs)

    def __call__(self, x: jax.Array, keys: jax.Array | None, salt: int) -> jax.Array:
        means = x @ self.kernel[...] + self.bias[...][None]
        return jax.nn.softplus(means + _noise(keys, means.shape[1:], salt))


class Smil(WholeFusion):
    """A main network on vectors of all modalities, the network that completes them and those that perturb features.

    `Routed.vectors` are the completed ones; without centres, in stage 1, what is missing is zero.
    """

    predicts, keeps = True, "centres"

    def __init__(
        self, spec: FusionSpec, width: int, num_groups: int, num_modalities: int, rngs: nnx.Rngs, num_outputs: int
    ):
        super().__init__(spec)
        d, m, k = width, num_modalities, spec.centres
        self.main = _Main(spec, m * d, rngs, num_outputs)
        self.asked, self.told = initial.linear(m * d, spec.hidden, rngs), initial.linear(spec.hidden, m * k, rngs)
        self.projection = initial.param(rngs, _identity, m, d, d)
        self.of_vectors, self.of_hidden = _Factors(m * d, m * d, rngs), _Factors(m * d, spec.hidden, rngs)
        self.centres = initial.param(rngs, initial.constant(0.0), m, k, d)  # measured, not trained

    def _completed(self, vectors: jax.Array, present: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Puts mixtures of centres in the places of what is missing, [b, m, d] -> [b, m, d]."""
        b, (m, k, d) = vectors.shape[0], self.centres.shape
        own = jnp.where(present[:, :, None], vectors, 0.0).reshape(b, m * d)
        scores = self.told(jax.nn.relu(self.asked(own))).reshape(b, m, k)
        weights = jax.nn.softplus(scores + _noise(keys, (m, k), 3))
        weights = weights / jnp.sum(weights, axis=2, keepdims=True)
        mixed = jnp.einsum("bmk,mkd,mdf->bmf", weights, self.centres[...], self.projection[...])
        return jnp.where(present[:, :, None], vectors, mixed)

    def __call__(
        self, x: jax.Array, tokens: Tokens, mask: jax.Array | None, gate: str | jax.Array, keys: jax.Array | None
    ) -> Routed:
        """Predicts from tokens [b, n, d]; random keys [b] turn noise and dropout on, `mask` and `gate` do nothing."""
        del mask, gate
        with jax.named_scope("completion"):
            vectors = self._completed(of_modalities(x, tokens.owner), tokens.present, keys)
        flat = vectors.reshape(vectors.shape[0], vectors.shape[1] * vectors.shape[2])
        flat = flat * self.of_vectors(flat, keys, 4)
        hidden = jax.nn.relu(self.main.hidden(flat)) * self.of_hidden(flat, keys, 5)
        logits = self.main.out(dropout(hidden, keys, self.spec.dropout, salt=0))
        features = jnp.mean(vectors, axis=1)
        return Routed(x, jnp.zeros(x.shape[0]), features=features, logits=logits, vectors=vectors)
