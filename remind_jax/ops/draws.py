"""Random keys and bits by a hash of counters, for what a step draws at every place of every sample.

Threefry, the generator behind `jax.random`, takes loops of twenty rounds for each key and each mask, which XLA compiles
one by one; a hash of a few operations becomes part of whatever reads it. Keys are those of `jax.random`, and may be
given to its functions. Integers alone decide, so that all devices and versions draw the same.
"""

import math

import jax
import jax.numpy as jnp

_WEYL = 0x9E3779B9  # the golden ratio's fraction, odd: multiples of it visit all numbers


def _mix(x: jax.Array) -> jax.Array:
    """Mixes all bits of uint32 numbers, one to one: the finalizer of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def fold_in(keys: jax.Array, number: jax.Array | int) -> jax.Array:
    """Returns new typed keys [...] from such keys [...] and numbers, () or [...]; no two of one number are the same."""
    words, number = jax.random.key_data(keys), jnp.asarray(number).astype(jnp.uint32)
    shape = jnp.broadcast_shapes(number.shape, keys.shape)
    first, second, number = (jnp.broadcast_to(x, shape) for x in (words[..., 0], words[..., 1], number))
    first = _mix(first ^ _mix((number + 1) * jnp.uint32(_WEYL)))
    second = _mix(second ^ first)
    return jax.random.wrap_key_data(jnp.stack([_mix(first + second), second], axis=-1))


def bits(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws random bits for each key [b], uint32 [b, *shape]."""
    words = jax.random.key_data(keys).reshape(-1, 2, *[1] * len(shape))
    place = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(1, *shape)
    return _mix(_mix(place * jnp.uint32(_WEYL) + words[:, 0]) ^ words[:, 1])
