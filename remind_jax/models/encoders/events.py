"""Events as a set: each by itself through a small network, and attention of learned questions over all of them.

After SeFT (Horn et al. 2020, arXiv 1909.12064), whose questions have no layers between events either. docs/events.md
says what else was measured. The work grows with the number of events, whose order is of no account.
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from remind_jax.models import initial
from remind_jax.ops import draws
from remind_jax.ops.transformer import attention, dropout, on_rows, softmax

WIDTH, HEADS = 64, 4
"""Width of an event, and heads of each question."""
_WAVES = 6  # of the time, each twice as fast as the one before; the slowest turns once in four units of time


class EventEncoder(nnx.Module):
    """Encodes the events of a sample, int32 [length, 3] of `data.inputs.events`, as t tokens of width d."""

    def __init__(self, vocabulary: int, *, layers: int, tokens: int, width: int, dropout: float, rngs: nnx.Rngs):
        """Declares the weights for so many codes, of which 0 pads; `tokens` is t, `width` d.

        `layers` is the number of layers of attention between events; their work grows with the square of the number of
        events.
        """
        self.layers, self.tokens, self.dropout = layers, tokens, dropout

        def normal(std: float, *dims: int) -> nnx.Param:
            return initial.param(rngs, initial.normal(std), *dims)

        self.code = normal(1.0, vocabulary, WIDTH)
        self.slope = normal(1.0, vocabulary, WIDTH)  # of a code's standardised value
        self.time = initial.linear(2 * _WAVES + 2, WIDTH, rngs)
        for i in range(layers + 1):
            setattr(self, f"layer_{i}", _Layer(attends=i > 0, rngs=rngs))
        self.norm = initial.layer_norm(WIDTH, rngs)
        self.question = normal(WIDTH**-0.5, tokens, HEADS, WIDTH)
        self.value = initial.linear(WIDTH, HEADS * WIDTH // 2, rngs)
        self.adapter = initial.linear(HEADS * WIDTH // 2, width, rngs)

    def events(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Returns the vector of each event, [b, length, 3] -> [b, length, WIDTH]."""
        ids, (value, time) = x[..., 0], (jax.lax.bitcast_convert_type(x[..., i], jnp.float32) for i in (1, 2))
        dtype = self.code[...].dtype
        value = jnp.where(jnp.isnan(value), 0.0, value).astype(dtype)
        found = self.code[ids] + self.slope[ids] * value[..., None]
        found = found + on_rows(self.time, _features(time).astype(dtype))
        for i in range(self.layers + 1):
            layer_keys = None if keys is None else draws.fold_in(keys, i)
            found = getattr(self, f"layer_{i}")(found, ids != 0, layer_keys, self.dropout)
        return self.norm(found)

    def features(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Returns what the questions find among the events, [b, length, 3] -> [b, t, HEADS * WIDTH / 2]."""
        events = self.events(x, keys)
        scores = jnp.einsum("bnd,thd->bthn", events, self.question[...], preferred_element_type=jnp.float32)
        there = (x[..., 0] != 0)[:, None, None, :]
        weights = softmax(jnp.where(there, scores, -1e30)).astype(events.dtype)
        values = rearrange(on_rows(self.value, events), "b n (h k) -> b n h k", h=HEADS)
        return rearrange(jnp.einsum("bthn,bnhk->bthk", weights, values), "b t h k -> b t (h k)")

    def project(self, features: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Applies the map into the fusion width, [b, t, d]."""
        del keys
        return on_rows(self.adapter, features)

    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Maps int [b, length, 3] to [b, t, d]; `keys` [b] turn dropout on."""
        return self.project(self.features(x, keys), keys)


class _Layer(nnx.Module):
    """A step of all events: attention between them, unless each is by itself, and a hidden layer."""

    def __init__(self, attends: bool, rngs: nnx.Rngs):
        if attends:
            self.attention_norm = initial.layer_norm(WIDTH, rngs)
            self.query_key_value = initial.linear(WIDTH, 3 * WIDTH, rngs)
            self.mixed = initial.linear(WIDTH, WIDTH, rngs)
        self.norm = initial.layer_norm(WIDTH, rngs)
        self.inner = initial.linear(WIDTH, 2 * WIDTH, rngs)
        self.outer = initial.linear(2 * WIDTH, WIDTH, rngs)

    def __call__(self, x: jax.Array, there: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
        """Maps [b, n, WIDTH] to the same; `there` [b, n] is False at what pads, `rate` that of dropout by `keys`."""
        if hasattr(self, "mixed"):
            parts = jnp.split(on_rows(self.query_key_value, self.attention_norm(x)), 3, axis=-1)
            x = x + dropout(on_rows(self.mixed, attention(*parts, heads=HEADS, mask=there)), keys, rate, salt=0)
        hidden = jax.nn.gelu(on_rows(self.inner, self.norm(x)))
        return x + on_rows(self.outer, dropout(hidden, keys, rate, salt=1))


def _features(time: jax.Array) -> jax.Array:
    """Returns the time, its logarithm, sines and cosines of it, [b, n] of at most 0 -> [b, n, features]."""
    waves = time[..., None] * (0.5 * np.pi * 2.0 ** np.arange(_WAVES, dtype=np.float32))[None, None]
    return jnp.concatenate(
        [time[..., None], jnp.log1p(16 * jnp.maximum(-time, 0.0))[..., None], jnp.sin(waves), jnp.cos(waves)], axis=-1
    )
