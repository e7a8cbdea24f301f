"""What the metrics of a network's layers have in common: layers by name, and a plot of some of their values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric


class LayeredMetric(Metric):
    """A metric whose ``compute()`` gives values by name.

    Args:
        layers: names to report one by one too; None: totals only.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ValueError: ``layers`` is a string or names a layer twice.
    """

    def __init__(self, layers: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(layers, str) or (layers is not None and len(set(layers)) < len(layers)):
            raise ValueError(f"layers is a sequence of different names, got {layers!r}")
        self.layers = None if layers is None else list(layers)

    @staticmethod
    @abstractmethod
    def _plotted(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of the computed values that share an axis."""

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot values of one scale, now or over a sequence of computed ones.

        Args:
            val: a result of ``compute()`` or ``forward()``, or a sequence of them; None computes now.
            ax: matplotlib axes to draw into.

        Returns:
            (figure, axes)
        """
        val = val if val is not None else self.compute()
        return self._plot([self._plotted(v) for v in val] if isinstance(val, Sequence) else self._plotted(val), ax)
