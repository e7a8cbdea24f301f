"""Solvers by name: feasible on any tile, as good as promised, the same in any batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm.kernels.solvers import SOLVERS, default_solver, solve
from lightning_nm.kernels.transposable.greedy import fill, greedy
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, is_feasible, kept, tiles_of_kind

EXACTLY = [solver for solver in SOLVERS if solver != "two_approximation"]


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize("solver", EXACTLY)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (3, 7), (8, 16)])
def test_never_worse_than_greedy(n: int, m: int, solver: str, kind: str) -> None:
    """On any tile."""
    tiles = tiles_of_kind(kind, 4, m)
    scores = scores_of(tiles)
    masks = solve(tiles, n, solver, at_most=False)
    assert is_feasible(masks, n)
    assert bool((kept(scores, masks) >= kept(scores, fill(scores, greedy(scores, n), n))).all())


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize("solver", EXACTLY)
def test_at_most_is_never_worse_than_greedy(solver: str, kind: str) -> None:
    """Nor than exactly N."""
    tiles = tiles_of_kind(kind, 4, 8)
    scores = scores_of(tiles)
    masks = solve(tiles, 4, solver, at_most=True)
    assert is_feasible(masks, 4, at_most=True)
    assert bool((kept(scores, masks) >= kept(scores, greedy(scores, 4))).all())


@pytest.mark.parametrize(
    ("solver", "n", "m", "tiles", "ratio"),
    [("fast", 4, 8, 1500, 0.998), ("entropic", 4, 8, 1500, 0.9998), ("entropic", 16, 32, 24, 0.9995)],
)
def test_share_of_the_optimum(solver: str, n: int, m: int, tiles: int, ratio: float) -> None:
    """Of the magnitude that the best masks of Gaussian tiles keep."""
    torch.manual_seed(0)
    gaussian = torch.randn(tiles, m, m)
    scores = scores_of(gaussian)
    best = kept(scores, solve(gaussian, n, "exact", at_most=False)).sum()
    assert float(kept(scores, solve(gaussian, n, solver, at_most=False)).sum() / best) >= ratio


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("m", [4, 8])
def test_a_batch_is_its_tiles(m: int, solver: str) -> None:
    """The mask of a tile does not depend on what it is solved with."""
    torch.manual_seed(0)
    tiles = torch.randn(20, m, m)
    together = solve(tiles, m // 2, solver, at_most=True)
    for batch in (1, 7):
        parts = [solve(some, m // 2, solver, at_most=True) for some in tiles.split(batch)]
        assert torch.equal(torch.cat(parts), together)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.booleans(), st.sampled_from(("exact", "entropic", "fast")), st.data())
def test_any_n_and_m(m: int, at_most: bool, solver: str, data: st.DataObject) -> None:
    """Feasible for any 0 < N <= M, whatever the magnitudes."""
    n = data.draw(st.integers(1, m))
    values = data.draw(st.lists(st.floats(-1e4, 1e4), min_size=m * m, max_size=m * m))
    masks = solve(torch.tensor(values).view(1, m, m), n, solver, at_most=at_most)
    assert is_feasible(masks, n, at_most=at_most)


def test_scale_does_not_matter() -> None:
    """Nor does the dtype that holds the same values."""
    tiles = torch.randn(6, 8, 8).bfloat16()
    mask = solve(tiles, 4, "exact", at_most=False)
    for scaled in (tiles.float(), tiles.double(), tiles.float() * 2.0**-40, tiles.double() * 2.0**60):
        assert torch.equal(solve(scaled, 4, "exact", at_most=False), mask)


def test_solvers_by_size() -> None:
    """The best mask where it costs little."""
    assert [default_solver(m) for m in (4, 16, 17, 32)] == ["exact", "exact", "entropic", "entropic"]
