"""The parts that make a network: the sections `model` and `fusion` of a config, and the input of each modality."""

import dataclasses
from typing import Any, Protocol


class ModalityInput(Protocol):
    """The input of one modality, as its encoder must know it.

    Attributes:
      encoder: family of the encoder, a key of `registry.ENCODERS`.
      shape: shape of one sample's input.
      vocabulary: number of token ids, 0 for an input that is not ids.
    """

    encoder: str
    shape: tuple[int, ...]
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class FusionSpec:
    """The fusion blocks of a network: section `fusion` of a config, whose keys remind_jax/config/table.py explains.

    Of `soft_moe` blocks all fields but those from top_k on are read; of `fuse_moe` and `flex_moe` blocks blocks, heads,
    experts, hidden, dropout, mask_missing and those from top_k to combine; of others some of blocks, heads,
    hidden, dropout, latents, bank and centres.
    """

    blocks: int
    kind: str
    heads: int
    experts: int
    slots: int
    hidden: int
    preset: str
    scale: float
    learn_scale: bool
    norm: str
    residual: bool
    mask_missing: bool
    group_routers: bool
    router_rank: int
    residual_init: str
    add_after_norm: bool
    gate_metric: str
    gate_threshold: float | str
    gate_share: float
    gate_granularity: str
    train_gate: str
    eval_gate: str
    dropout: float
    top_k: int
    routing: str
    scores: str
    share_experts: bool
    attention: str
    attention_base: str
    combine: str
    latents: int
    bank: int
    centres: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A network: section `model` of a config, whose keys remind_jax/config/table.py explains, its fusion blocks, and
    whether it is one of an ensemble, which choose among equal ways to compute the same.
    """

    width: int
    tokens: int
    encoder_hidden: int
    encoder_dropout: float
    text_encoder: str
    text_size: str
    text_gated: bool
    event_layers: int
    image_encoder: str
    volume_encoder: str
    remat: bool
    imputation: str
    modality_embedding: bool
    mask_input: bool
    pooling: str
    wide: bool
    members: int
    fusion: FusionSpec
    several: bool = False


def model_spec(config: Any) -> ModelSpec:
    """Returns the network that a config describes."""
    fusion = {field.name: config["fusion"][field.name] for field in dataclasses.fields(FusionSpec)}
    names = [field.name for field in dataclasses.fields(ModelSpec) if field.name not in ("fusion", "several")]
    keys = {name: config["model"][name] for name in names}
    return ModelSpec(fusion=FusionSpec(**fusion), several=config["ensemble"] > 1, **keys)
