"""Shape and options of the network, and what it must know of its inputs."""

import dataclasses
from typing import Protocol

from remind_jax.models.fusion.soft_moe import FusionSpec


class ModalityInput(Protocol):
    """What an encoder must know of one modality.

    Attributes:
      encoder: its family, a key of `registry.ENCODERS`.
      shape: of one sample's input.
      vocabulary: number of token ids, 0 for an input that is not ids.
    """

    encoder: str
    shape: tuple[int, ...]
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Shape and options of the network.

    Attributes:
      width: d.
      tokens: t, tokens of each modality (precomputed embeddings keep their own number).
      encoder_hidden: width of a hidden layer in patch encoders; 0 is the paper's linear map.
      encoder_dropout: rate on the tokens that encoders give, and inside text encoders and hidden layers.
      text_size: a key of `t5.SIZES`.
      text_gated: gated GELU (T5 v1.1) instead of ReLU (v1.0).
      image_encoder: a key of `registry.IMAGE`. A ViT gives all its tokens, a residual network `tokens` of them.
      volume_encoder: a key of `registry.VOLUME`.
      remat: compute the layers of text and ViT encoders again in the backward pass instead of keeping what is inside.
      imputation: one of `imputation.KINDS`.
      modality_embedding: add a learned vector of its modality to every token.
      pooling: `mean` over all tokens, `observed` for those of present modalities, `first` token, or `attention`.
      wide: add a linear map from the tokens of present modalities to the logits, zero at first (Cheng et al. 2016).
      members: predictors that share all weights but a factor of each input of the fusion and a head (TabM-mini,
        Gorishniy et al. 2025, arXiv 2410.24210, after BatchEnsemble, Wen et al. 2020).
      fusion: of the soft-MoE blocks.
    """

    width: int = 64
    tokens: int = 1
    encoder_hidden: int = 0
    encoder_dropout: float = 0.0
    text_size: str = "small"
    text_gated: bool = True
    image_encoder: str = "vit_small"
    volume_encoder: str = "r3d_small"
    remat: bool = False
    imputation: str = "group"
    modality_embedding: bool = False
    pooling: str = "mean"
    wide: bool = False
    members: int = 1
    fusion: FusionSpec = dataclasses.field(default_factory=FusionSpec)
