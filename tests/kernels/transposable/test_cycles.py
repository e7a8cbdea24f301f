"""Without positive cycles a mask is optimal; without positive swaps, never worse than where it began."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.kernels.transposable.cycles import improve
from lightning_nm.kernels.transposable.greedy import fill, greedy
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, is_feasible, kept, optimum, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 8), (4, 8), (3, 7), (6, 12)])
@pytest.mark.parametrize("at_most", [False, True])
def test_the_best_mask_is_found(at_most: bool, n: int, m: int, kind: str) -> None:
    """As much as a linear program finds, from any feasible mask."""
    scores = scores_of(tiles_of_kind(kind, 5, m))
    starts = [fill(scores, greedy(scores, n), n), fill(scores, greedy(scores.flip(1), n), n)]
    if at_most:
        starts = [starts[0], torch.zeros_like(starts[0])]
    best = [optimum(score, n, at_most=at_most) for score in scores]
    for start in starts:
        masks = improve(scores, start, n, at_most=at_most)
        assert is_feasible(masks, n, at_most=at_most)
        assert kept(scores, masks).tolist() == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(4, 8), (8, 16), (16, 32)])
@pytest.mark.parametrize("at_most", [False, True])
def test_swaps_never_lose(at_most: bool, n: int, m: int, kind: str) -> None:
    """On every single tile."""
    scores = scores_of(tiles_of_kind(kind, 4, m))
    start = greedy(scores, n) if at_most else fill(scores, greedy(scores, n), n)
    swapped = improve(scores, start, n, at_most=at_most, swaps_only=True)
    assert is_feasible(swapped, n, at_most=at_most)
    assert bool((kept(scores, swapped) >= kept(scores, start)).all())


def test_no_swap_is_left() -> None:
    """Exchanging any two rows' entries in two columns gains nothing."""
    scores = scores_of(torch.randn(3, 6, 6))
    masks = improve(scores, fill(scores, greedy(scores, 3), 3), 3, at_most=False, swaps_only=True)
    for w, mask in zip(scores, masks):
        for i in range(6):
            for k in range(6):
                for y in (mask[k] & ~mask[i]).nonzero().flatten():
                    for x in (mask[i] & ~mask[k]).nonzero().flatten():
                        assert w[i, y] + w[k, x] <= w[i, x] + w[k, y]


def test_at_most_can_keep_more() -> None:
    """Row 0 and column 0 are heavy where they meet and nowhere else: room is better left."""
    scores = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 9.0], [0.0, 9.0, 9.0]]], dtype=torch.float64)
    start = fill(scores, greedy(scores, 2), 2)
    assert float(kept(scores, improve(scores, start, 2, at_most=False))) == 36.0
    assert float(kept(scores, improve(scores, start, 2, at_most=True))) == 45.0
