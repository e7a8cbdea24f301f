"""The compiled plan is that of the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from lightning_nm.kernels import transposable
from lightning_nm.kernels.cpu.transposable import plan
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 3), (4, 8), (3, 7), (8, 16), (16, 32), (5, 33)])
def test_plans_equal_the_reference(n: int, m: int, kind: str) -> None:
    """Bit for bit: every sum is taken in the same order."""
    scores = scores_of(tiles_of_kind(kind, 3, m))
    assert torch.equal(plan(scores, n), transposable.plan(scores, n))
