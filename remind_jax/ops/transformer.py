"""Operations of transformers that several modules use."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from remind_jax.ops import draws

# The score of a hidden token is finite, so that a sample without any visible token has no NaN.
_HIDDEN = -1e30


def dropout(x: jax.Array, keys: jax.Array | None, rate: float, salt: int) -> jax.Array:
    """Zeroes entries of x [b, ...] with probability `rate` and rescales the rest; without keys returns `x`.

    Each sample has its own typed key [b], so that its mask does not depend on how a batch is spread over devices;
    `salt` differs between places in the network.
    """
    if keys is None or rate == 0.0:
        return x
    keep = draws.bits(draws.fold_in(keys, salt), x.shape[1:]) < jnp.uint32(min((1.0 - rate) * 2**32, 2**32 - 1))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def on_rows(layer: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Applies a linear map to the last axis, with the other axes joined to one, [..., d] -> [..., f].

    XLA on CPU takes up to twice as long for a product over two axes of rows, and for the gradient of its weights.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Applies a root-mean-square norm over the last axis, [..., d] and [d] -> [..., d], with statistics in float32."""
    variance = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(variance + epsilon).astype(x.dtype)) * jnp.expand_dims(scale, range(x.ndim - 1))


@jax.custom_jvp
def softmax(x: jax.Array) -> jax.Array:
    """Applies softmax over the last axis; its derivative reuses the result, which halves the time of XLA on CPU."""
    unscaled = jnp.exp(x - jnp.max(x, axis=-1, keepdims=True))
    return unscaled * (1.0 / jnp.sum(unscaled, axis=-1, keepdims=True))


@softmax.defjvp
def _softmax_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    result = softmax(*primals)
    moved = result * tangents[0]
    return result, moved - result * jnp.sum(moved, axis=-1, keepdims=True)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    heads: int,
    scale: float | None = None,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Computes multi-head attention on projected inputs [b, n, h * k], [b, n, h * k].

    `scale` multiplies the scores, None is 1 / sqrt(k); `bias` [1, h, n, n] is added to them; no token reads those where
    `mask` [b, n] is False.
    """
    query, key, value = (rearrange(x, "b n (h k) -> b h n k", h=heads) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * jnp.einsum("bhnk,bhmk->bhnm", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, _HIDDEN)
    mixed = jnp.einsum("bhnm,bhmk->bhnk", softmax(scores).astype(value.dtype), value)
    return rearrange(mixed, "b h n k -> b n (h k)")


def relative_position_buckets(length: int, buckets: int = 32, max_distance: int = 128) -> jax.Array:
    """Returns the buckets of position pairs for a bidirectional T5 bias (Raffel et al. 2020), int [length, length].

    Half of the buckets are for keys after the query. In each half, the first half holds exact distances and the rest
    grows logarithmically up to `max_distance`; all larger distances share the last bucket.
    """
    distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    apart = jnp.abs(distance)
    log_ratio = jnp.log(jnp.maximum(apart, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (log_ratio * (half - exact)).astype(jnp.int32), half - 1)
    return jnp.where(distance > 0, half, 0) + jnp.where(apart < exact, apart, far)


def segment_means(x: jax.Array, mask: jax.Array, segments: int) -> jax.Array:
    """Averages the valid tokens of each sequence over t segments of equal length, [b, length, d] -> [b, t, d].

    Tokens where `mask` [b, length] is True are valid and come first. A text of fewer than t tokens fills the first
    segments with one token each and leaves the others zero.
    """
    lengths = jnp.sum(mask, axis=1, keepdims=True)
    position = jnp.arange(x.shape[1])[None, :]
    segment = jnp.where(lengths >= segments, position * segments // jnp.maximum(lengths, 1), position)
    member = (segment[:, :, None] == jnp.arange(segments)[None, None]) & mask[:, :, None]
    member = member.astype(x.dtype)
    weights = member / jnp.maximum(jnp.sum(member, axis=1, keepdims=True), 1.0)
    return jnp.einsum("bnd,bnt->btd", x, weights)
