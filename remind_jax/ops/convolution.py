"""Convolutions, batch norm and the residual blocks of He et al. (2016), for both images and volumes.

Arrays are channels-last, [b, *positions, channels] with positions (height, width) or (frames, height, width), and
kernels [*window, channels in, channels out].
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

EPSILON = 1e-5
MOMENTUM = 0.1  # weight of a batch in the new running statistics


class Statistics(NamedTuple):
    """Running mean and variance of each channel, [channels]."""

    mean: jax.Array
    variance: jax.Array


class Unit(NamedTuple):
    """A convolution without bias, [*window, channels in, channels out], and the batch norm [channels out] after it."""

    kernel: jax.Array
    scale: jax.Array
    bias: jax.Array
    running: Statistics


class Block(NamedTuple):
    """The units on the residual path, and the unit on the shortcut, None where the shortcut is the identity."""

    path: tuple[Unit, ...]
    shortcut: Unit | None


class BlockStatistics(NamedTuple):
    """New running statistics of the units of a block."""

    path: tuple[Statistics, ...]
    shortcut: Statistics | None


# (x, unit) -> (normalised x, new running statistics or None): `batch_norm` with its other arguments bound.
Normalise = Callable[[jax.Array, Unit], tuple[jax.Array, Statistics | None]]


def convolve(x: jax.Array, kernel: jax.Array, strides: Sequence[int]) -> jax.Array:
    """Cross-correlates `x` with a kernel of odd windows; for every stride, half a window of zeros pads both sides.

    `strides` has a number for each axis of the window; n positions become ceil(n / stride). Padding that depends on the
    stride, as in XLA's "SAME", would shift pretrained filters by a pixel.
    """
    padding = [(size // 2, size // 2) for size in kernel.shape[:-2]]
    axes = "DHW"[-len(padding) :]
    return jax.lax.conv_general_dilated(
        x, kernel, tuple(strides), padding, dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C")
    )


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the largest value of 3 x 3 windows with stride 2, [b, h, w, channels] -> [b, ⌈h/2⌉, ⌈w/2⌉, channels]."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def batch_norm(
    x: jax.Array, unit: Unit, *, present: jax.Array | None = None, axis_name: str | None = None
) -> tuple[jax.Array, Statistics | None]:
    """Standardises channels by running statistics or by the statistics of a batch (Ioffe and Szegedy 2015).

    With `present`, bool [b], it uses those of the batch's present samples, over all devices of `axis_name`, and returns
    new running statistics, otherwise None. Absent samples are not counted and their outputs are the mean of the
    channel, so that their activations cannot grow from layer to layer. As in PyTorch, the running variance is updated
    with the unbiased variance; with fewer than two values a channel the running statistics do not change.
    """
    scale, bias = (_row(v, x.ndim) for v in (unit.scale, unit.bias))
    if present is None:
        mean, variance = (_row(v, x.ndim) for v in unit.running)
        factor = scale * jax.lax.rsqrt(variance + EPSILON)
        return x * factor + (bias - mean * factor), None

    positions = tuple(range(x.ndim - 1))
    mask = present.reshape(-1, *(1,) * (x.ndim - 1))

    def total(values: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        summed = jnp.sum(values, axis=axes)
        return summed if axis_name is None else jax.lax.psum(summed, axis_name)

    count = total(present.astype(x.dtype), (0,)) * math.prod(x.shape[1:-1])
    mean = total(jnp.where(mask, x, 0.0), positions) / jnp.maximum(count, 1.0)
    centred = jnp.where(mask, x - _row(mean, x.ndim), 0.0)
    variance = total(jnp.square(centred), positions) / jnp.maximum(count, 1.0)
    unbiased = variance * count / jnp.maximum(count - 1.0, 1.0)
    share = jnp.where(count > 1.0, MOMENTUM, 0.0)
    running = Statistics(*(old + share * (new - old) for old, new in zip(unit.running, (mean, unbiased), strict=True)))
    return centred * (scale * _row(jax.lax.rsqrt(variance + EPSILON), x.ndim)) + bias, running


def residual_block(
    x: jax.Array, block: Block, strides: Sequence[int], normalise: Normalise
) -> tuple[jax.Array, BlockStatistics]:
    """Returns the ReLU of a shortcut plus convolutions with ReLUs between them (He et al. 2016, section 3).

    The first convolution with a window larger than 1 has the `strides`, and one on the shortcut: in a bottleneck the 3
    x 3 one, as in PyTorch's version 1.5 of ResNet, not the 1 x 1 one before it as in the paper. `normalise` is
    `batch_norm` in the mode of training or of evaluation, which has no new running statistics.
    """
    strided = next(i for i, unit in enumerate(block.path) if max(unit.kernel.shape[:-2]) > 1)
    y, statistics = x, []
    for i, unit in enumerate(block.path):
        steps = strides if i == strided else (1,) * len(strides)
        y, running = normalise(convolve(y, unit.kernel, steps), unit)
        statistics.append(running)
        if i + 1 < len(block.path):
            y = jax.nn.relu(y)
    shortcut = None
    if block.shortcut is not None:
        x, shortcut = normalise(convolve(x, block.shortcut.kernel, strides), block.shortcut)
    return jax.nn.relu(x + y), BlockStatistics(tuple(statistics), shortcut)


def _row(x: jax.Array, ndim: int) -> jax.Array:
    return x.reshape((1,) * (ndim - 1) + (-1,))
