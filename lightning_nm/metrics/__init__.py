"""torchmetrics metrics of sparse topologies."""

from lightning_nm.metrics.diversity import MaskDiversity
from lightning_nm.metrics.sad import SparseArchitectureDivergence

__all__ = ["MaskDiversity", "SparseArchitectureDivergence"]
