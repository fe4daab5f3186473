"""ResNet image encoder (He et al. 2016; REMIND section 7.4.1), with the strides of PyTorch's version 1.5."""

from typing import Any

from flax import nnx

from remind_jax.models.encoders import residual
from remind_jax.models.encoders.residual import Dimensions, ResidualEncoder
from remind_jax.models.pretrained import Tensor
from remind_jax.ops import pixels

# `small` is for sides of 32 or so: it starts with 3 x 3 windows at full size and without a pool.
SIZES = {
    "small": Dimensions(
        stem=(3, 3),
        stem_strides=(1, 1),
        stem_width=16,
        pool=False,
        windows=(1, 3, 1),
        blocks=(1, 2, 2),
        widths=(8, 16, 32),
        expansion=2,
        adapter=64,
    ),
    "50": Dimensions(
        stem=(7, 7),
        stem_strides=(2, 2),
        stem_width=64,
        pool=True,
        windows=(1, 3, 1),
        blocks=(3, 4, 6, 3),
        widths=(64, 128, 256, 512),
        expansion=4,
        adapter=512,
    ),
}
PREFIXES = ("", "resnet.")
MODEL_TYPES = ("resnet",)


class ResNetEncoder(ResidualEncoder):
    """Encodes images as t tokens of width d, pieces of one pooled vector, so that each is of the whole image."""

    def __init__(self, shape: tuple[int, ...], *, size: str, tokens: int, width: int, dropout: float, rngs: nnx.Rngs):
        """Declares the weights; images have any sides: the network ends in an average; `size` is a key of `SIZES`."""
        del shape
        super().__init__(SIZES[size], pixels.IMAGENET, tokens=tokens, width=width, dropout=dropout, rngs=rngs)


def checkpoint_layout(size: str) -> dict[str, Tensor]:
    """Returns the place of the trunk in published files, in names of torchvision (timm) or transformers, by path."""

    def unit(stage: int, block: int, place: int | None) -> tuple[tuple[str, str], ...]:
        vision, hugging = f"layer{stage + 1}.{block}", f"encoder.stages.{stage}.layers.{block}"
        if place is None:
            vision_pair, part = (f"{vision}.downsample.0", f"{vision}.downsample.1"), f"{hugging}.shortcut"
        else:
            vision_pair = (f"{vision}.conv{place + 1}", f"{vision}.bn{place + 1}")
            part = f"{hugging}.layer.{place}"
        return vision_pair, (f"{part}.convolution", f"{part}.normalization")

    embedder = "embedder.embedder"
    stem = (("conv1", "bn1"), (f"{embedder}.convolution", f"{embedder}.normalization"))
    return residual.layout(SIZES[size], stem, unit)


def checkpoint_config(size: str) -> dict[str, Any]:
    """Returns settings that config.json must not contradict: strides, and blocks beyond ours, which no shape shows."""
    return {
        "depths": list(SIZES[size].blocks),
        "layer_type": "bottleneck",
        "downsample_in_bottleneck": False,
        "downsample_in_first_stage": False,
        "hidden_act": "relu",
    }
