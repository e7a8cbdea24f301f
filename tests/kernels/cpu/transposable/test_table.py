"""The compiled table: eight tiles at a time."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from lightning_nm.kernels import transposable
from lightning_nm.kernels.cpu.transposable import by_table
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (1, 3), (2, 3), (1, 4), (2, 4), (3, 4), (4, 4)])
@pytest.mark.parametrize("tiles", [0, 1, 7, 8, 17])
def test_masks_equal_the_reference(tiles: int, n: int, m: int, kind: str) -> None:
    """Of whole vectors and of what is left over, ties included."""
    scores = scores_of(tiles_of_kind(kind, tiles, m)) if tiles else torch.empty(0, m, m, dtype=torch.float64)
    assert torch.equal(by_table(scores, n), transposable.by_table(scores, n))
