"""Sparse Architecture Divergence as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nm.metrics.functional.sad import Mask, _sad_compute, _sad_update
from lightning_nm.metrics.layered import LayeredMetric


class SparseArchitectureDivergence(LayeredMetric):
    """How far masks move between two moments (Zhou et al., ICLR 2021, eq. 7).

    ``update(before, after)`` takes two masks, or two mappings from layer name to mask; ``compute()``
    gives ``count`` (mean over the updates), ``fraction`` and ``fraction_of_max``, as
    `lightning_nm.metrics.functional.sparse_architecture_divergence` does. Across processes numerators
    and denominators are summed, so that the world size inflates nothing.

    Args:
        layers: names to report one by one too, as ``<layer>/count`` and so on; updates must then be
            mappings with just these names. None: totals only, of mappings too.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: ``layers`` is a string or names a layer twice.

    >>> metric = SparseArchitectureDivergence()
    >>> metric.update(torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False]))
    >>> metric.compute()["count"]
    tensor(2., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    counts: Tensor
    comparisons: Tensor

    def __init__(self, layers: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(layers, **kwargs)
        rows = 1 if self.layers is None else len(self.layers)
        self.add_state("counts", torch.zeros(rows, 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("comparisons", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, before: Mask | Mapping[str, Mask], after: Mask | Mapping[str, Mask]) -> None:
        """Count one pair of moments.

        Raises:
            ValueError: not bool masks, or different layers or shapes.
        """
        counts = _sad_update(before, after, self.layers)
        self.counts += (counts.sum(0, keepdim=True) if self.layers is None else counts).to(self.counts.device)
        self.comparisons += 1

    def compute(self) -> dict[str, Tensor]:
        return _sad_compute(self.counts, self.comparisons.cpu(), self.layers)

    @staticmethod
    def _plotted(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: values[key] for key in ("fraction", "fraction_of_max")}
