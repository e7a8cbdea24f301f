"""Mask diversity as a torchmetrics metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nm.metrics.functional.diversity import PatternLike, Weight, _diversity_compute, _diversity_update
from lightning_nm.metrics.layered import LayeredMetric

_PARTS = 2**40  # of a nat


class MaskDiversity(LayeredMetric):
    """Number of masks that a pattern allows (Hubara et al., arXiv 2102.08124, "mask diversity").

    ``update(pattern, weights)`` takes a pattern, or one for each layer by name, and weights or shapes likewise; weights
    that belong together, as those of a model, go into one update. ``compute()`` gives the means over the updates of
    ``log`` and ``log10``, and ``bits_per_weight``, as `lightning_nm.metrics.functional.mask_diversity` does. Processes
    that hold the same model count it once, not once each.

    Args:
        layers: names to report one by one too, as ``<layer>/log`` and so on; the weights of an update must then be a
            mapping with just these names. None: totals only, of mappings too.
        exact: False: transposable masks by the paper's formula, for tiles whose masks are too many to be counted.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: ``layers`` is a string or names a layer twice.

    >>> metric = MaskDiversity()
    >>> metric.update("2:4", {"fc1": (8, 16), "fc2": (4, 8)})  # 6 masks for every 4 weights
    >>> metric.compute()["bits_per_weight"]
    tensor(0.6462, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    counts: Tensor
    updates: Tensor

    def __init__(self, layers: Sequence[str] | None = None, exact: bool = True, **kwargs: Any) -> None:
        super().__init__(layers, **kwargs)
        self.exact = exact
        rows = 1 if self.layers is None else len(self.layers)
        # whole nats, parts of a nat, entries: integers have exact sums, and some devices have no float64
        self.add_state("counts", torch.zeros(rows, 3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("updates", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, pattern: PatternLike | Mapping[str, PatternLike], weights: Weight | Mapping[str, Weight], dim: int = 1
    ) -> None:
        """Count the masks of one model.

        Raises:
            ValueError: no pattern, a shape that it does not fit, other layers, or masks too many to be counted.
        """
        counts = _diversity_update(pattern, weights, self.layers, self.exact, dim)
        log, numel = (counts.sum(0, keepdim=True) if self.layers is None else counts).unbind(1)
        parts = (log.frac() * _PARTS).round()
        self.counts += torch.stack([log.trunc(), parts, numel], 1).long().to(self.counts.device)
        self.updates += 1

    def compute(self) -> dict[str, Tensor]:
        nats, parts, numel = self.counts.cpu().double().unbind(1)
        means = torch.stack([nats + parts / _PARTS, numel], 1) / max(int(self.updates), 1)
        return _diversity_compute(means, self.layers)

    @staticmethod
    def _plotted(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: value for key, value in values.items() if key.endswith("bits_per_weight")}
