"""Patch embedding of tabular rows and of precomputed tokens (REMIND section 7.4.1)."""

import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from remind_jax.models import initial
from remind_jax.ops.transformer import dropout, on_rows

_SMALL = 2**16  # numbers of a kernel; of large ones the zeros that fill them up would cost more than they spare


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

    @property
    def is_stacked(self) -> bool:
        """Whether it is a small map of a row to one token, which `embed_rows` applies for all such encoders at once."""
        return self.tokens == 1 and not hasattr(self, "hidden") and self.embed.kernel.size <= _SMALL


def embed_rows(encoders: Sequence[PatchEncoder], rows: Sequence[jax.Array]) -> jax.Array:
    """Maps the rows of k encoders that are stacked, [b, p] each, to their tokens [b, k, d] in one product.

    Rows and weights are filled up with zeros to the longest, each by one look-up: compiling grows with the number of
    operations, and these are as many whatever k. Weights that lie side by side in a vector are read as one.
    """
    lengths, width = [x.shape[-1] for x in rows], encoders[0].position.shape[-1]
    starts, place = np.cumsum([0, *lengths[:-1]]), np.arange(max(lengths))[None]
    # Where row i of a table lies among those of all; behind the last one, where zero is read, for what fills up.
    index = np.where(place < np.array(lengths)[:, None], starts[:, None] + place, sum(lengths))

    def filled(x: jax.Array, axis: int) -> jax.Array:
        return jnp.take(x, index, axis=axis, mode="fill", fill_value=0)

    def together(parts: Iterable[nnx.Param]) -> jax.Array:
        return jnp.concatenate([part[...].reshape(-1) for part in parts]).reshape(-1, width)

    x = filled(jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in rows], axis=1), 1)
    weights = filled(together(encoder.embed.kernel for encoder in encoders), 0)
    shift = together(encoder.embed.bias for encoder in encoders) + together(encoder.position for encoder in encoders)
    return jnp.einsum("bkp,kpd->bkd", x, weights) + shift[None]
