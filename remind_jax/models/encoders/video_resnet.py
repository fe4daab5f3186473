"""3D ResNet for volumes, torchvision's r3d_18 (Tran et al. 2018; REMIND section 7.4.1)."""

import functools
from typing import Any

from flax import nnx

from remind_jax.models.encoders import residual
from remind_jax.models.encoders.residual import Dimensions, ResidualEncoder
from remind_jax.models.pretrained import Tensor
from remind_jax.ops import pixels

_basic_blocks = functools.partial(Dimensions, windows=(3, 3), pool=False, expansion=1)
# The first stage keeps the frames; each of the others halves them, as it does height and width.
SIZES = {
    "small": _basic_blocks(
        stem=(3, 3, 3), stem_strides=(2, 2, 2), stem_width=8, blocks=(1, 1, 2), widths=(8, 16, 32), adapter=64
    ),
    "18": _basic_blocks(
        stem=(3, 7, 7),
        stem_strides=(1, 2, 2),
        stem_width=64,
        blocks=(2, 2, 2, 2),
        widths=(64, 128, 256, 512),
        adapter=512,
    ),
}
PREFIXES = ("",)
MODEL_TYPES = ()


class VideoResNetEncoder(ResidualEncoder):
    """Encodes volumes as t tokens of width d, pieces of one pooled vector, so that each is of the whole volume."""

    def __init__(self, shape: tuple[int, ...], *, size: str, tokens: int, width: int, dropout: float, rngs: nnx.Rngs):
        """Declares the weights; volumes have any sides: the network ends in an average; `size` is a key of `SIZES`."""
        del shape
        super().__init__(SIZES[size], pixels.KINETICS, tokens=tokens, width=width, dropout=dropout, rngs=rngs)


def checkpoint_layout(size: str) -> dict[str, Tensor]:
    """Returns the place of the trunk in published files, in torchvision's names, by path; see `pretrained.load`."""

    def unit(stage: int, block: int, place: int | None) -> tuple[tuple[str, str], ...]:
        part = "downsample" if place is None else f"conv{place + 1}"
        return ((f"layer{stage + 1}.{block}.{part}.0", f"layer{stage + 1}.{block}.{part}.1"),)

    return residual.layout(SIZES[size], (("stem.0", "stem.1"),), unit)


def checkpoint_config(size: str) -> dict[str, Any]:
    """Returns settings that config.json must not contradict: none, since torchvision's files have no config.json."""
    del size
    return {}
