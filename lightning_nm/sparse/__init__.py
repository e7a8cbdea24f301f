"""Sparse weights in packed storage. Knows no Lightning."""

from lightning_nm.sparse.blocks import PackedBlocks

__all__ = ["PackedBlocks"]
