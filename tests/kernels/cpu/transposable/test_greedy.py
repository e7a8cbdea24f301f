"""The compiled greedy masks are those of the reference, ties included."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from lightning_nm.kernels import transposable
from lightning_nm.kernels.cpu.transposable import fill, greedy
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (4, 8), (3, 7), (8, 16), (16, 32)])
def test_masks_equal_the_reference(n: int, m: int, kind: str) -> None:
    """Bit for bit, before and after they are completed."""
    scores = scores_of(tiles_of_kind(kind, 9, m))
    short = transposable.greedy(scores, n)
    assert torch.equal(greedy(scores, n), short)
    assert torch.equal(fill(scores, short, n), transposable.fill(scores, short, n))


def test_scores_need_not_be_contiguous() -> None:
    """A transposed batch is solved as it is seen."""
    scores = scores_of(torch.randn(5, 8, 8)).transpose(1, 2)
    assert torch.equal(greedy(scores, 4), transposable.greedy(scores, 4))
