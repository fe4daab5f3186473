"""Operations of transformers that several modules use."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from remind_jax.ops import draws

# The score of a hidden token is finite, so that a sample without any visible token has no NaN.
_HIDDEN = -1e30
# Whether what is traced is for a GPU that has cuDNN's attention; None: if this process has one.
_FOR_GPU: contextvars.ContextVar[bool | None] = contextvars.ContextVar("for_gpu", default=None)


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


@contextlib.contextmanager
def tracing_for_gpu(on: bool) -> Iterator[None]:
    """Says whether what is traced inside is for a GPU, whatever this process has.

    Attention for a GPU has no forward-mode derivative.
    """
    token = _FOR_GPU.set(on)
    try:
        yield
    finally:
        _FOR_GPU.reset(token)


def is_for_gpu(dtype: Any) -> bool:
    """Returns whether what is traced may be cuDNN's: in bfloat16, for NVIDIA's GPUs from Ampere on.

    It is decided before the trace, as the branches of `jax.lax.platform_dependent` would each keep for the backward
    pass what the other needs.
    """
    if dtype != jnp.bfloat16 or _FOR_GPU.get() is not None:
        return dtype == jnp.bfloat16 and bool(_FOR_GPU.get())
    device = jax.devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def _cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, scale: float | None, length: int
) -> jax.Array:
    """Computes `attention` by cuDNN, which writes no scores down and takes even numbers of tokens only."""
    b, n, _ = query.shape
    padding = ((0, 0), (0, n % 2), (0, 0))
    split = (rearrange(jnp.pad(x, padding), "b n (h k) -> b n h k", h=heads) for x in (query, key, value))
    lengths = None if length == n + n % 2 else jnp.full(b, length, jnp.int32)
    lengths = {"query_seq_lengths": lengths, "key_value_seq_lengths": lengths}
    mixed = jax.nn.dot_product_attention(*split, scale=scale, **lengths, implementation="cudnn")
    return rearrange(mixed[:, :n], "b n h k -> b n (h k)")


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    heads: int,
    scale: float | None = None,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    length: int = 0,
) -> jax.Array:
    """Computes multi-head attention on projected inputs [b, n, h * k], [b, n, h * k].

    `scale` multiplies the scores, None is 1 / sqrt(k); `bias` [1, h, n, n] is added to them; no token reads those where
    `mask` [b, n] is False, nor those after the first `length`, 0 for n. For a GPU it is cuDNN's, without bias and mask.
    """
    width = query.shape[2] // heads
    if is_for_gpu(query.dtype) and bias is None and mask is None and width % 8 == 0 and width <= 128:
        return _cudnn_attention(query, key, value, heads, scale, length or query.shape[1])
    if length:
        mask = (True if mask is None else mask) & (jnp.arange(query.shape[1]) < length)[None]
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
