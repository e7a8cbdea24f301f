"""The compiled cycles are those of the reference, ties included."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from lightning_nm.kernels import transposable
from lightning_nm.kernels.cpu.transposable import improve
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (1, 8), (4, 8), (3, 7), (8, 16), (16, 32)])
@pytest.mark.parametrize("at_most", [False, True])
@pytest.mark.parametrize("swaps_only", [False, True])
def test_masks_equal_the_reference(swaps_only: bool, at_most: bool, n: int, m: int, kind: str) -> None:
    """Bit for bit: promise 4 rests on it."""
    scores = scores_of(tiles_of_kind(kind, 2 if m > 16 else 9, m))
    start = transposable.fill(scores, transposable.greedy(scores, n), n)
    expected = transposable.improve(scores, start, n, at_most=at_most, swaps_only=swaps_only)
    assert torch.equal(improve(scores, start, n, at_most=at_most, swaps_only=swaps_only), expected)


def test_the_start_is_not_touched() -> None:
    """The mask that is given stays as it is."""
    scores = scores_of(torch.randn(3, 8, 8))
    start = transposable.fill(scores, transposable.greedy(scores, 4), 4)
    before = start.clone()
    assert not torch.equal(improve(scores, start, 4, at_most=False), before)
    assert torch.equal(start, before)
