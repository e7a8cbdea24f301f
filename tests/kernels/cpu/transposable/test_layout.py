"""The compiled scores are those of the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from lightning_nm.kernels import transposable
from lightning_nm.kernels.cpu.transposable import scores_of
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize("m", [1, 4, 7, 32])
def test_scores_equal_the_reference(m: int, kind: str) -> None:
    """Bit for bit, of any dtype."""
    tiles = tiles_of_kind(kind, 9, m)
    assert torch.equal(scores_of(tiles), transposable.scores_of(tiles))


def test_what_is_no_number() -> None:
    """NaN and infinity count as in the reference."""
    tiles = torch.randn(3, 4, 4)
    tiles[0, 0, 0], tiles[1, 1, 1], tiles[2] = torch.nan, -torch.inf, torch.nan
    assert torch.equal(scores_of(tiles), transposable.scores_of(tiles))


def test_the_weight_is_not_touched() -> None:
    """Scores of a float64 weight are a copy."""
    tiles = torch.randn(2, 4, 4, dtype=torch.float64)
    before = tiles.clone()
    scores_of(tiles)
    assert torch.equal(tiles, before)
