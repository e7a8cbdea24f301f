"""The compiled room has every stage that the solvers ask for."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numba")

from lightning_nm.kernels import cpu
from lightning_nm.kernels.solvers import solve
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize("solver", ["exact", "entropic", "fast"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (5, 11), (1, 16), (16, 16), (3, 18)])
@pytest.mark.parametrize("at_most", [False, True])
def test_solvers_equal_the_reference(at_most: bool, n: int, m: int, solver: str, kind: str) -> None:
    """From the weight to the mask."""
    tiles = tiles_of_kind(kind, 9, m)
    compiled = solve(tiles, n, solver, at_most=at_most, stages=cpu.transposable)
    assert torch.equal(compiled, solve(tiles, n, solver, at_most=at_most))
