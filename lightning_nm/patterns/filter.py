"""Filter sparsity: whole outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_nm.patterns.base import other_dim
from lightning_nm.patterns.layer_budget import LayerBudget


@dataclass(frozen=True)
class Filter(LayerBudget):
    """Of a layer's filters (all weights of one output) the ``sparsity`` share of smallest l1 norm goes.

    Li et al., ICLR 2017. Written ``"filter@sparsity"``. Their places stay, as zeros: shapes are the dense model's.

    Raises:
        ValueError: unless 0 <= sparsity < 1.
    """

    sparsity: float

    def __str__(self) -> str:
        return f"filter@{self.sparsity}"

    def why_not(
        self, shape: Sequence[int], *, dim: int = 1, span: int | None = None, rows: int | None = None
    ) -> str | None:
        if span is not None and span < shape[dim]:
            return "filters of a grouped transposed convolution do not lie along its dimensions"
        return None

    def _unit(self, shape: Sequence[int], dim: int) -> dict[int, int]:
        return {d: size for d, size in enumerate(shape) if d != other_dim(dim, len(shape))}
