"""Channels in another order, the same network: more of it fits a sparsity pattern."""

from lightning_nm.conversion.rearrangement.rearrange import rearrange
from lightning_nm.conversion.rearrangement.report import Rearranged, Rearrangement

__all__ = ["Rearranged", "Rearrangement", "rearrange"]
