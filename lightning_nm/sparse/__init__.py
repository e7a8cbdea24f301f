"""Sparse weights in packed storage. Knows no Lightning."""

from lightning_nm.sparse.blocks import PackedBlocks
from lightning_nm.sparse.nm import PackedNM

__all__ = ["PackedBlocks", "PackedNM"]
