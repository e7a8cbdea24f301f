"""What the metrics of a network's layers have in common."""

from __future__ import annotations

import pytest

from lightning_nm.metrics import MaskDiversity, SparseArchitectureDivergence
from lightning_nm.metrics.layered import LayeredMetric

METRICS = [MaskDiversity, SparseArchitectureDivergence]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("layers", ["fc", ["fc", "fc"]])
def test_layers_are_different_names(metric: type[LayeredMetric], layers: object) -> None:
    """A string would be taken letter by letter."""
    with pytest.raises(ValueError, match="layers is a sequence of different names"):
        metric(layers=layers)


@pytest.mark.parametrize("metric", METRICS)
def test_layers_are_kept_as_a_list(metric: type[LayeredMetric]) -> None:
    """Whatever sequence they came in."""
    assert metric(layers=("a", "b")).layers == ["a", "b"]
    assert metric().layers is None
