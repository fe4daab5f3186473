"""Fusion blocks; to add one, write a subclass of `soft_moe.FusionBlock` in a file of its own and name it here."""

from remind_jax.models.fusion.soft_moe import FusionBlock, SoftMoEBlock
from remind_jax.models.fusion.sparse_moe import SparseMoEBlock

FUSIONS: dict[str, type[FusionBlock]] = {
    "soft_moe": SoftMoEBlock,
    "fuse_moe": SparseMoEBlock,
    "flex_moe": SparseMoEBlock,
}
"""Every block by the value of `fusion.kind`; a block is made as (spec, width, groups g, modalities m, rngs)."""
