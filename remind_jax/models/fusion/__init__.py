"""Fusions; to add one, write a subclass of `soft_moe.FusionBlock` or `late.WholeFusion`, and name it here."""

from remind_jax.models.fusion.drfuse import DrFuse
from remind_jax.models.fusion.healnet import HealNet
from remind_jax.models.fusion.late import LateFusion, WholeFusion
from remind_jax.models.fusion.m3care import M3Care
from remind_jax.models.fusion.medfuse import MedFuse
from remind_jax.models.fusion.shaspec import ShaSpec
from remind_jax.models.fusion.simmlm import SimMLM
from remind_jax.models.fusion.smil import Smil
from remind_jax.models.fusion.soft_moe import FusionBlock, SoftMoEBlock
from remind_jax.models.fusion.sparse_moe import SparseMoEBlock
from remind_jax.models.fusion.umse import Umse

FUSIONS: dict[str, type[FusionBlock | WholeFusion]] = {
    "soft_moe": SoftMoEBlock,
    "fuse_moe": SparseMoEBlock,
    "flex_moe": SparseMoEBlock,
    "late_fusion": LateFusion,
    "healnet": HealNet,
    "medfuse": MedFuse,
    "shaspec": ShaSpec,
    "drfuse": DrFuse,
    "umse": Umse,
    "simmlm": SimMLM,
    "m3care": M3Care,
    "smil": Smil,
}
"""Every fusion by the value of `fusion.kind`, made as (spec, width, groups g, modalities m, rngs); one that predicts
takes `num_outputs`, too."""
