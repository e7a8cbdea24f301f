"""torchmetrics metrics of sparse topologies."""

from lightning_nm.metrics.sad import SparseArchitectureDivergence

__all__ = ["SparseArchitectureDivergence"]
