"""The paper's min-cost flow, through OR-tools."""

from __future__ import annotations

import sys

import pytest
import torch

from lightning_nm.kernels.transposable.flow import flow
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, is_feasible, kept, optimum, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (3, 7)])
@pytest.mark.parametrize("at_most", [False, True])
def test_flows_are_optimal(at_most: bool, n: int, m: int, kind: str) -> None:
    """As much as a linear program finds."""
    scores = scores_of(tiles_of_kind(kind, 4, m))
    masks = flow(scores, n, at_most=at_most)
    assert is_feasible(masks, n, at_most=at_most)
    best = [optimum(score, n, at_most=at_most) for score in scores]
    assert kept(scores, masks).tolist() == pytest.approx(best, rel=1e-9)


def test_without_or_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "ortools.graph.python", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-nm\[flow\]'"):
        flow(torch.ones(1, 2, 2, dtype=torch.float64), 1, at_most=False)
