"""Unstructured sparsity: every entry for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_nm.patterns.layer_budget import LayerBudget


@dataclass(frozen=True)
class Unstructured(LayerBudget):
    """Of a layer's entries the ``sparsity`` share of smallest magnitude goes. Written ``"unstructured@sparsity"``.

    The most that any pattern of this density can keep; no kernel is fast on it.

    Raises:
        ValueError: unless 0 <= sparsity < 1.
    """

    sparsity: float

    def __str__(self) -> str:
        return f"unstructured@{self.sparsity}"

    def _unit(self, shape: Sequence[int], dim: int) -> dict[int, int]:
        return {}
