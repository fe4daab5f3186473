"""Which encoder serves which kind of modality, and where its published weights come from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from flax import nnx

from remind_jax.models.encoders import resnet, t5, video_resnet, vit
from remind_jax.models.encoders.patch import PatchEncoder
from remind_jax.models.pretrained import Tensor

if TYPE_CHECKING:
    from remind_jax.models.model import ModalityInput, ModelSpec

IMAGE = {
    "vit_small": (vit.VitEncoder, "small"),
    "vit_tiny": (vit.VitEncoder, "tiny"),
    "vit_base": (vit.VitEncoder, "base"),
    "resnet_small": (resnet.ResNetEncoder, "small"),
    "resnet50": (resnet.ResNetEncoder, "50"),
}
"""Encoders of kind `image`: class and size."""
VOLUME = {
    "r3d_small": (video_resnet.VideoResNetEncoder, "small"),
    "r3d_18": (video_resnet.VideoResNetEncoder, "18"),
}
"""Encoders of kind `volume`."""
TEXT = ("text", "codes")
BATCH_NORMALISED = (resnet.ResNetEncoder, video_resnet.VideoResNetEncoder)
"""Encoders that take the present samples of a batch [b] as a third argument when their batch norms are trained."""

WITH_TRUNK = (t5.T5Encoder, vit.VitEncoder, *BATCH_NORMALISED)
"""Encoders of which `features` gives what a frozen trunk finds, and `project` takes it into the fusion width."""


def has_trunk(kind: str) -> bool:
    """Whether the encoder of a kind is one `WITH_TRUNK`."""
    return kind in (*TEXT, "image", "volume")


class Checkpoint(NamedTuple):
    """How a published file holds an encoder's weights; see `pretrained.load`."""

    layout: Mapping[str, Tensor]
    prefixes: Sequence[str]
    model_types: Sequence[str]
    config: Mapping[str, Any]


def make_encoder(spec: "ModelSpec", modality: "ModalityInput", rngs: nnx.Rngs) -> nnx.Module:
    """The encoder of one modality, called as (input, random keys [b] or None) -> [b, t, d]."""
    shape = modality.shape
    common = {"width": spec.width, "dropout": spec.encoder_dropout, "rngs": rngs}
    if modality.kind in TEXT:
        sizes = {"size": spec.text_size, "gated": spec.text_gated, "tokens": spec.tokens}
        return t5.T5Encoder(modality.vocabulary, **sizes, **common, remat=spec.remat)
    if modality.kind in ("image", "volume"):
        make, size = IMAGE[spec.image_encoder] if modality.kind == "image" else VOLUME[spec.volume_encoder]
        if make is vit.VitEncoder:
            return make(shape, size=size, **common, remat=spec.remat)
        return make(shape, size=size, tokens=spec.tokens, **common)
    return PatchEncoder(shape, hidden=spec.encoder_hidden, tokens=spec.tokens, **common)


def checkpoint(spec: "ModelSpec", kind: str) -> Checkpoint | None:
    """Where the weights of a kind's encoder lie in published files; None for patch encoders, which have none."""
    if kind in TEXT:
        layout = t5.checkpoint_layout(spec.text_size, spec.text_gated)
        return Checkpoint(layout, t5.PREFIXES, t5.MODEL_TYPES, t5.checkpoint_config(spec.text_size, spec.text_gated))
    if kind not in ("image", "volume"):
        return None
    _, size = IMAGE[spec.image_encoder] if kind == "image" else VOLUME[spec.volume_encoder]
    module = video_resnet if kind == "volume" else vit if spec.image_encoder.startswith("vit") else resnet
    return Checkpoint(
        module.checkpoint_layout(size), module.PREFIXES, module.MODEL_TYPES, module.checkpoint_config(size)
    )
