"""Patch embedding of tabular rows and of precomputed tokens (REMIND section 7.4.1)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from remind_jax.models import initial
from remind_jax.ops.transformer import dropout, on_rows


class PatchEncoder(nnx.Module):
    """Embeds patches of numbers as tokens, with a learned vector for each position.

    A row of p numbers is zero-padded and cut into t patches of ceil(p / t); [b, t, w] inputs are patches already.
    """

    def __init__(self, shape: tuple[int, ...], *, tokens: int, width: int, hidden: int, dropout: float, rngs: nnx.Rngs):
        """Declares the weights for inputs of a `shape`, (p,) or (t, w) of which t stays; `tokens` is t of a row,
        `width` d.

        `hidden` is the width of a GELU layer before the last one, with `dropout`; 0 is the single linear map of the
        paper.
        """
        self.tokens = tokens if len(shape) == 1 else shape[0]
        self.patch = math.ceil(shape[0] / tokens) if len(shape) == 1 else shape[1]
        self.dropout = dropout
        if hidden:
            self.hidden = initial.linear(self.patch, hidden, rngs)
        self.embed = initial.linear(hidden or self.patch, width, rngs)
        self.position = initial.param(rngs, initial.normal(0.02), self.tokens, width)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Maps [b, p] or [b, t, w] to [b, t, d]; `keys` [b] turn dropout on."""
        if x.ndim == 2:
            x = jnp.pad(x, ((0, 0), (0, self.tokens * self.patch - x.shape[1])))
            x = x.reshape(x.shape[0], self.tokens, self.patch)
        if hasattr(self, "hidden"):
            x = dropout(jax.nn.gelu(on_rows(self.hidden, x)), keys, self.dropout, salt=0)
        return on_rows(self.embed, x) + self.position[None]
