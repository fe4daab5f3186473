"""A text or a list of codes as a bag: the mean of learned vectors of its terms, in whatever order they stand.

A term counts with 1 + log of how often it occurs, as in TF-IDF, times a weight of its own, which is learned; the
weights of a sample have length one. Where texts are few this is nearer to logistic regression on TF-IDF than a
transformer is, and with `model.wide` it holds that model: a linear map from terms to logits.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from remind_jax.models import initial
from remind_jax.ops.transformer import dropout, on_rows

WIDTH = 64
"""Width of the vector of a term."""
_PAD, _END = 0, 1  # ids that are no terms
_GAIN = 16.0  # an optimizer step moves a term's vector by so many times what it moves other weights


class BagEncoder(nnx.Module):
    """Encodes the ids of a sample, int32 [length], as t tokens of width d that do not depend on their order."""

    def __init__(
        self, vocabulary: int, *, tokens: int, width: int, dropout: float, rngs: nnx.Rngs, dense: bool = False
    ):
        """Declares the weights for so many ids, of which 0 pads and 1 ends; `tokens` is t, `width` d.

        `dropout` is the rate on ids: in training a sample lacks so many of its terms. With `dense` the mean is a
        product with weights of all ids, for several networks at once five times as fast as gathered vectors.
        """
        self.tokens, self.dropout, self.dense = tokens, dropout, dense
        self.rarity = initial.param(rngs, initial.constant(0.0), vocabulary)  # log of a term's own weight
        self.embedding = initial.param(rngs, initial.normal(1.0 / _GAIN), vocabulary, WIDTH)
        self.adapter = initial.linear(WIDTH, tokens * width, rngs)

    def features(self, ids: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Returns the mean vector of the terms, [b, length] -> [b, 1, WIDTH]."""
        there = ((ids != _PAD) & (ids != _END)).astype(jnp.float32)
        kept = dropout(there, keys, self.dropout, salt=0) > 0
        weights = bag_weights(ids, kept, self.rarity[...].astype(jnp.float32)).astype(self.embedding.dtype)
        if self.dense:
            row, shape = jnp.arange(ids.shape[0])[:, None], (ids.shape[0], len(self.embedding[...]))
            mean = jnp.zeros(shape, weights.dtype).at[row, ids].add(weights) @ self.embedding[...]
        else:
            mean = jnp.einsum("bn,bnk->bk", weights, self.embedding[...][ids])
        return _GAIN * mean[:, None]

    def project(self, features: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Applies the map into the fusion width, [b, 1, WIDTH] -> [b, t, d]."""
        del keys
        return on_rows(self.adapter, features).reshape(features.shape[0], self.tokens, -1)

    def __call__(self, ids: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Maps int [b, length] to [b, t, d]; `keys` [b] turn dropout on."""
        return self.project(self.features(ids, keys), keys)


def bag_weights(ids: jax.Array, kept: jax.Array, rarity: jax.Array) -> jax.Array:
    """Returns the weights of ids [b, n], of which those `kept` count, float32 [b, n].

    A term that occurs c times weighs (1 + log c) exp(`rarity` [v]), over the length of the vector of all terms of the
    sample; each of its c places has an equal part. Without any term all weights are 0.
    """
    row = jnp.arange(ids.shape[0])[:, None]  # any number of rows is exported by a symbol, which has no len
    count = jnp.zeros((ids.shape[0], len(rarity)), jnp.int32).at[row, ids].add(kept.astype(jnp.int32))[row, ids]
    count = jnp.maximum(count, 1).astype(jnp.float32)
    term = jnp.where(kept, (1.0 + jnp.log(count)) * jnp.exp(rarity[ids]), 0.0)
    length = jnp.sqrt(jnp.maximum((term**2 / count).sum(-1, keepdims=True), 1e-12))
    return term / count / length
