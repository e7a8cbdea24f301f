"""Pure functions; each has a torchmetrics class of the same name one room up."""

from lightning_nm.metrics.functional.diversity import mask_diversity
from lightning_nm.metrics.functional.sad import sparse_architecture_divergence

__all__ = ["mask_diversity", "sparse_architecture_divergence"]
