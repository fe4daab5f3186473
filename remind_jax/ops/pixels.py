"""Pixels in the scale that pretrained networks expect."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Mean and standard deviation of the channels of pixels in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))


def normalize(pixels: jax.Array, statistics: tuple[Sequence[float], Sequence[float]]) -> jax.Array:
    """Standardises the channels of 8-bit pixels, uint8 [..., 1 or 3] -> float32 [..., 3], by their mean and deviation.

    A single channel is repeated, so that colour networks can read grey images. This runs on the device because shards
    hold bytes, a quarter of the size of floats.
    """
    mean, std = (jnp.asarray(x, jnp.float32) for x in statistics)
    x = pixels.astype(jnp.float32) / 255.0
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
    shape = (1,) * (x.ndim - 1) + (3,)
    return (x - mean.reshape(shape)) / std.reshape(shape)
