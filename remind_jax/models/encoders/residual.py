"""The residual network under the image and the volume encoder, and the adapter after it (REMIND section 7.4.1)."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from einops import reduce
from flax import nnx

from remind_jax.models import initial
from remind_jax.models.encoders.patch import PatchEncoder
from remind_jax.models.pretrained import Tensor, as_is
from remind_jax.ops import convolution, pixels
from remind_jax.ops.transformer import dropout

Colours = tuple[tuple[float, ...], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Dimensions:
    """The numbers in which residual networks differ.

    Attributes:
      stem: window of the first convolution, one number an axis of the positions.
      stem_strides: its strides.
      stem_width: its channels.
      pool: whether a max pool over 3 x 3 follows it.
      windows: side of the convolutions of a block, (1, 3, 1) in a bottleneck and (3, 3) in a basic block.
      blocks: number of them in each stage; every stage but the first halves the positions.
      widths: channels inside the blocks of each stage.
      expansion: channels that leave a block, as a multiple of those inside.
      adapter: width of the projection of the pooled features.
    """

    stem: tuple[int, ...]
    stem_strides: tuple[int, ...]
    stem_width: int
    pool: bool
    windows: tuple[int, ...]
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    expansion: int
    adapter: int

    @property
    def features(self) -> int:
        """F, the channels of the last feature map."""
        return self.leaving(len(self.widths) - 1)

    def entering(self, stage: int) -> int:
        """Channels of the input of a stage."""
        return self.leaving(stage - 1) if stage else self.stem_width

    def leaving(self, stage: int) -> int:
        """Channels of the output of a stage."""
        return self.widths[stage] * self.expansion

    def projects(self, stage: int) -> bool:
        """Returns whether the shortcut around the first block of a stage is a convolution."""
        return stage > 0 or self.entering(stage) != self.leaving(stage)


class _Unit(nnx.Module):
    """Weights of a convolution and its norm; `stack` puts those of several blocks in one array."""

    def __init__(
        self,
        window: tuple[int, ...],
        channels: tuple[int, int],
        rngs: nnx.Rngs,
        scale: float = 1.0,
        stack: tuple[int, ...] = (),
    ):
        # He's rule for the number of inputs, which keeps the size of activations.
        kernel = initial.normal(math.sqrt(2.0 / (math.prod(window) * channels[0])))
        self.kernel = initial.param(rngs, kernel, *stack, *window, *channels)
        norm, zero, one = (*stack, channels[1]), initial.constant(0.0), initial.constant(1.0)
        self.scale = initial.param(rngs, initial.constant(scale), *norm)
        self.bias = initial.param(rngs, zero, *norm)
        self.running_mean = nnx.BatchStat(initial.by(zero)(rngs.params(), norm))
        self.running_variance = nnx.BatchStat(initial.by(one)(rngs.params(), norm))

    def weights(self) -> convolution.Unit:
        running = convolution.Statistics(self.running_mean[...], self.running_variance[...])
        return convolution.Unit(self.kernel[...], self.scale[...], self.bias[...], running)

    def store(self, running: convolution.Statistics | None) -> None:
        if running is not None:
            self.running_mean[...], self.running_variance[...] = running


class _Block(nnx.Module):
    """Weights of the first block of a stage, or of all its other blocks, which are alike, in stacked arrays."""

    def __init__(self, dims: Dimensions, stage: int, stack: tuple[int, ...], rngs: nnx.Rngs):
        axes, last = len(dims.stem), len(dims.windows) - 1
        width, after = dims.widths[stage], dims.leaving(stage)
        before = after if stack else dims.entering(stage)
        widths = (before, *(width,) * last, after)
        self.units = len(dims.windows)
        for i, side in enumerate(dims.windows):
            # A zero scale makes a fresh block the identity (Goyal et al. 2017), so that a network without pretrained
            # weights is stable under running statistics that nobody has measured.
            scale = 0.0 if i == last else 1.0
            unit = _Unit((side,) * axes, (widths[i], widths[i + 1]), rngs, scale, stack)
            setattr(self, f"unit_{i}", unit)
        if not stack and dims.projects(stage):
            self.shortcut = _Unit((1,) * axes, (before, after), rngs)

    def weights(self) -> convolution.Block:
        path = tuple(getattr(self, f"unit_{i}").weights() for i in range(self.units))
        return convolution.Block(path, self.shortcut.weights() if hasattr(self, "shortcut") else None)

    def store(self, statistics: convolution.BlockStatistics) -> None:
        for i, running in enumerate(statistics.path):
            getattr(self, f"unit_{i}").store(running)
        if hasattr(self, "shortcut"):
            self.shortcut.store(statistics.shortcut)


class _Stage(nnx.Module):
    """A block that changes the shape, and the other blocks, which are alike, as stacked arrays."""

    def __init__(self, dims: Dimensions, stage: int, rngs: nnx.Rngs):
        self.strides = (2 if stage else 1,) * len(dims.stem)
        self.first = _Block(dims, stage, (), rngs)
        if dims.blocks[stage] > 1:
            self.rest = _Block(dims, stage, (dims.blocks[stage] - 1,), rngs)

    def __call__(self, x: jax.Array, normalise: convolution.Normalise) -> jax.Array:
        x, statistics = convolution.residual_block(x, self.first.weights(), self.strides, normalise)
        self.first.store(statistics)
        if hasattr(self, "rest"):
            # One body for all of them: a network of 16 blocks compiles as fast as one of 8. On CPU the gradients of
            # convolutions in loops miss XLA's fast path; no small size has such a loop (more than one turn).
            still = (1,) * len(self.strides)
            x, statistics = jax.lax.scan(
                lambda x, block: convolution.residual_block(x, block, still, normalise), x, self.rest.weights()
            )
            self.rest.store(statistics)
        return x


class Trunk(nnx.Module):
    """Stem and stages, without pooling and classifier."""

    def __init__(self, dims: Dimensions, rngs: nnx.Rngs):
        self.dims = dims
        self.stem = _Unit(dims.stem, (3, dims.stem_width), rngs)
        for i in range(len(dims.blocks)):
            setattr(self, f"stage_{i}", _Stage(dims, i, rngs))

    def __call__(self, x: jax.Array, present: jax.Array | None = None, axis_name: str | None = None) -> jax.Array:
        """Computes the last feature map, [b, *positions, features], of normalised pixels, float [b, *positions, 3].

        `present` None uses frozen statistics; bool [b] normalises by the present samples and updates the module's
        running statistics, see `convolution.batch_norm`. `axis_name` is the mapped axis over which the batch is spread,
        if it is.
        """
        normalise = functools.partial(convolution.batch_norm, present=present, axis_name=axis_name)
        weights = self.stem.weights()
        x, running = normalise(convolution.convolve(x, weights.kernel, self.dims.stem_strides), weights)
        self.stem.store(running)
        x = jax.nn.relu(x)
        if self.dims.pool:
            x = convolution.max_pool(x)
        for i in range(len(self.dims.blocks)):
            x = getattr(self, f"stage_{i}")(x, normalise)
        return x


class Projection(nnx.Module):
    """Projects pooled features, cuts the result into t pieces and embeds them with a vector for each position."""

    def __init__(self, dims: Dimensions, *, tokens: int, width: int, dropout: float, rngs: nnx.Rngs):
        self.dropout = dropout
        self.project = initial.linear(dims.features, dims.adapter, rngs, gain=2.0)
        self.patches = PatchEncoder((dims.adapter,), tokens=tokens, width=width, hidden=0, dropout=0.0, rngs=rngs)

    def __call__(self, features: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Maps pooled features [b, F] to [b, t, d]; `keys` [b] turn dropout of the projection on."""
        return self.patches(dropout(self.project(features), keys, self.dropout, salt=0), None)


class ResidualEncoder(nnx.Module):
    """A residual network with its average pool, and the adapter; image and volume encoders differ in numbers only."""

    def __init__(self, dims: Dimensions, colours: Colours, *, tokens: int, width: int, dropout: float, rngs: nnx.Rngs):
        """Declares the weights; `colours` are mean and standard deviation of the channels that it was trained on.

        The rate of dropout is that on the projection of the pooled features, from which t tokens of width d are made.
        """
        self.colours = colours
        self.trunk = Trunk(dims, rngs)
        self.tokens = tokens
        self.adapter = Projection(dims, tokens=tokens, width=width, dropout=dropout, rngs=rngs)

    def encode(self, x: jax.Array, present: jax.Array | None = None, axis_name: str | None = None) -> jax.Array:
        """Returns pooled features [b, F] of normalised pixels [b, *positions, 3]; further arguments as for `Trunk`."""
        return reduce(self.trunk(x, present, axis_name), "b ... f -> b f", "mean")

    def features(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Returns pooled features of pixels by running statistics, [b, F]; the trunk has no dropout."""
        del keys
        return self.encode(self._normalised(x))

    def project(self, features: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Applies the layers after the trunk, [b, t, d]; `keys` [b] turn dropout on."""
        return self.adapter(features, keys)

    def __call__(
        self, x: jax.Array, keys: jax.Array | None, present: jax.Array | None = None, *, axis_name: str | None = None
    ) -> jax.Array:
        """Maps uint8 [b, *positions, 1 or 3] to [b, t, d]; random keys [b] turn dropout on.

        `present` and `axis_name` are those of `Trunk`; frozen statistics, the default, are what small batches need.
        """
        return self.adapter(self.encode(self._normalised(x), present, axis_name), keys)

    def _normalised(self, x: jax.Array) -> jax.Array:
        return pixels.normalize(x, self.colours).astype(self.trunk.stem.kernel[...].dtype)


def layout(
    dims: Dimensions, stem: Sequence[tuple[str, str]], unit: Callable[[int, int, int | None], Sequence[tuple[str, str]]]
) -> dict[str, Tensor]:
    """Returns the place of the trunk's weights in a checkpoint: tensors by path below the encoder.

    `stem` has the names of convolution and norm of the stem, a pair for each naming that is accepted; `unit` gives such
    names for (stage, block, place in the block or None for the shortcut).
    """
    tensors = _unit_layout("trunk/stem", [stem], stacked=False)
    for stage, blocks in enumerate(dims.blocks):
        for place in range(len(dims.windows)):
            names = [unit(stage, block, place) for block in range(blocks)]
            path = f"trunk/stage_{stage}/{{}}/unit_{place}"
            tensors |= _unit_layout(path.format("first"), names[:1], stacked=False)
            if blocks > 1:
                tensors |= _unit_layout(path.format("rest"), names[1:], stacked=True)
        if dims.projects(stage):
            tensors |= _unit_layout(f"trunk/stage_{stage}/first/shortcut", [unit(stage, 0, None)], stacked=False)
    return tensors


def _unit_layout(path: str, names: Sequence[Sequence[tuple[str, str]]], *, stacked: bool) -> dict[str, Tensor]:
    """Returns the tensors of a unit from the names of convolution and norm, for each layer and each accepted naming."""
    entries = {
        "kernel": (0, "weight"),
        "scale": (1, "weight"),
        "bias": (1, "bias"),
        "running_mean": (1, "running_mean"),
        "running_variance": (1, "running_var"),
    }
    return {
        f"{path}/{ours}": Tensor(
            tuple(tuple(f"{pair[part]}.{theirs}" for pair in layer) for layer in names),
            _channels_last if ours == "kernel" else as_is,
            stacked,
        )
        for ours, (part, theirs) in entries.items()
    }


def _channels_last(kernel: np.ndarray) -> np.ndarray:
    """Moves channels last, [out, in, *window] -> [*window, in, out]."""
    return np.moveaxis(kernel, (0, 1), (-1, -2))
