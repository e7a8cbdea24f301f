"""The compiled solver gives the masks of the plain one, ties included."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from lightning_nm.kernels import cpu, tiles
from tests.kernels.test_tiles import ODD_TILES


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(
    ("n", "m", "longest"), [(2, 4, 4), (1, 3, 3), (1, 8, 8), (4, 8, 2), (4, 8, 8), (3, 7, 7), (8, 16, 16), (16, 32, 2)]
)
def test_masks_equal_the_reference(n: int, m: int, longest: int, kind: str) -> None:
    """Bit for bit: promise 4 rests on it."""
    torch.manual_seed(0)
    scores = tiles.scores_of(ODD_TILES[kind](12, m))
    assert torch.equal(cpu.solve(scores, n, longest), tiles.solve(scores, n, longest))


def test_scores_need_not_be_contiguous() -> None:
    """A transposed batch is solved as it is seen."""
    scores = tiles.scores_of(torch.randn(5, 8, 8)).transpose(1, 2)
    assert torch.equal(cpu.solve(scores, 4, 8), tiles.solve(scores, 4, 8))
