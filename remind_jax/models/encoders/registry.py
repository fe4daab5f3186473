"""The families of encoders, and where their published weights come from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

from remind_jax.models.encoders import resnet, t5, video_resnet, vit
from remind_jax.models.encoders.bag import BagEncoder
from remind_jax.models.encoders.events import EventEncoder
from remind_jax.models.encoders.patch import PatchEncoder
from remind_jax.models.pretrained import Tensor
from remind_jax.models.spec import ModalityInput, ModelSpec

IMAGE = {
    "vit_small": (vit.VitEncoder, "small"),
    "vit_tiny": (vit.VitEncoder, "tiny"),
    "vit_base": (vit.VitEncoder, "base"),
    "resnet_small": (resnet.ResNetEncoder, "small"),
    "resnet50": (resnet.ResNetEncoder, "50"),
}
"""Encoders of the family `image`: class and size."""
VOLUME = {"r3d_small": (video_resnet.VideoResNetEncoder, "small"), "r3d_18": (video_resnet.VideoResNetEncoder, "18")}
"""Encoders of the family `volume`."""
BATCH_NORMALISED = (resnet.ResNetEncoder, video_resnet.VideoResNetEncoder)
"""Encoders that take the present samples of a batch [b] as a third argument when their batch norms are trained."""


class PublishedWeights(NamedTuple):
    """The layout of an encoder's published weights; see `pretrained.load`."""

    layout: Mapping[str, Tensor]
    prefixes: Sequence[str]
    model_types: Sequence[str]
    config: Mapping[str, Any]


class Family(NamedTuple):
    """A family of encoders for one form of input.

    Attributes:
      make: gives the encoder of one modality, (input, random keys [b] or None) -> [b, t, d]; its attribute `tokens` is
        t.
      has_trunk: whether encoders have `features`, the outputs of a frozen trunk, and `project`, their map to width d.
      published: the layout of their published weights; None without any.
    """

    make: Callable[[ModelSpec, ModalityInput, nnx.Rngs], nnx.Module]
    has_trunk: bool = False
    published: Callable[[ModelSpec], PublishedWeights] | None = None


def _options(spec: ModelSpec, rngs: nnx.Rngs) -> dict[str, Any]:
    return {"width": spec.width, "dropout": spec.encoder_dropout, "rngs": rngs}


def _patch(spec: ModelSpec, modality: ModalityInput, rngs: nnx.Rngs) -> nnx.Module:
    return PatchEncoder(modality.shape, hidden=spec.encoder_hidden, tokens=spec.tokens, **_options(spec, rngs))


def _text(spec: ModelSpec, modality: ModalityInput, rngs: nnx.Rngs) -> nnx.Module:
    if spec.text_encoder == "bag":
        return BagEncoder(modality.vocabulary, tokens=spec.tokens, dense=spec.several, **_options(spec, rngs))
    sizes = {"size": spec.text_size, "gated": spec.text_gated, "tokens": spec.tokens}
    return t5.T5Encoder(modality.vocabulary, **sizes, **_options(spec, rngs), remat=spec.remat)


def _events(spec: ModelSpec, modality: ModalityInput, rngs: nnx.Rngs) -> nnx.Module:
    return EventEncoder(modality.vocabulary, layers=spec.event_layers, tokens=spec.tokens, **_options(spec, rngs))


def _image(spec: ModelSpec, modality: ModalityInput, rngs: nnx.Rngs) -> nnx.Module:
    make, size = IMAGE[spec.image_encoder]
    own = {"remat": spec.remat} if make is vit.VitEncoder else {"tokens": spec.tokens}
    return make(modality.shape, size=size, **_options(spec, rngs), **own)


def _volume(spec: ModelSpec, modality: ModalityInput, rngs: nnx.Rngs) -> nnx.Module:
    make, size = VOLUME[spec.volume_encoder]
    return make(modality.shape, size=size, tokens=spec.tokens, **_options(spec, rngs))


def _published_text(spec: ModelSpec) -> PublishedWeights:
    layout = t5.checkpoint_layout(spec.text_size, spec.text_gated)
    return PublishedWeights(layout, t5.PREFIXES, t5.MODEL_TYPES, t5.checkpoint_config(spec.text_size, spec.text_gated))


def _published_image(spec: ModelSpec) -> PublishedWeights:
    return _published_pixels(vit if spec.image_encoder.startswith("vit") else resnet, IMAGE[spec.image_encoder][1])


def _published_volume(spec: ModelSpec) -> PublishedWeights:
    return _published_pixels(video_resnet, VOLUME[spec.volume_encoder][1])


def _published_pixels(module: Any, size: str) -> PublishedWeights:
    layout, config = module.checkpoint_layout(size), module.checkpoint_config(size)
    return PublishedWeights(layout, module.PREFIXES, module.MODEL_TYPES, config)


ENCODERS: dict[str, Family] = {
    "patch": Family(_patch),
    "text": Family(_text, True, _published_text),
    "codes": Family(_text, True),  # ids are those of a fitted list, which no published file knows
    "image": Family(_image, True, _published_image),
    "events": Family(_events, True),
    "volume": Family(_volume, True, _published_volume),
}
"""The families by name; the kind of a modality names one. To add one, write its encoder and name it here."""


def has_trunk(family: str) -> bool:
    """Returns whether outputs of a family's frozen trunk can be stored; other encoders map into the fusion width."""
    return ENCODERS[family].has_trunk


def make_encoder(spec: ModelSpec, modality: ModalityInput, rngs: nnx.Rngs) -> nnx.Module:
    """Makes the encoder of one modality, called as (input, random keys [b] or None) -> [b, t, d]."""
    return ENCODERS[modality.encoder].make(spec, modality, rngs)
