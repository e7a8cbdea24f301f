"""Greedy masks are feasible, and their exchanges the best."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nm.kernels.transposable.greedy import fill, greedy, two_approximation
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, is_feasible, kept, optimum, tiles_of_kind


def greedy_by_hand(scores: Tensor, n: int) -> Tensor:
    m = len(scores)
    mask = torch.zeros(m, m, dtype=torch.bool)
    for _, entry in sorted((-float(score), entry) for entry, score in enumerate(scores.flatten())):
        row, column = divmod(entry, m)
        mask[row, column] = mask[row].sum() < n and mask[:, column].sum() < n
    return mask


def two_approximation_by_hand(scores: Tensor, n: int) -> Tensor:
    m = len(scores)
    mask = torch.ones(m, m, dtype=torch.bool)
    for _, entry in sorted((float(score), entry) for entry, score in enumerate(scores.flatten())):
        row, column = divmod(entry, m)
        mask[row, column] = mask[row].sum() <= n and mask[:, column].sum() <= n
    return mask


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (5, 7)])
def test_greedy_is_heaviest_first(n: int, m: int, kind: str) -> None:
    """One entry after the other."""
    scores = scores_of(tiles_of_kind(kind, 5, m))
    assert torch.equal(greedy(scores, n), torch.stack([greedy_by_hand(score, n) for score in scores]))


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (5, 7)])
def test_two_approximation_prunes_lightest_first(n: int, m: int, kind: str) -> None:
    """As long as a row or column has more than N left."""
    scores = scores_of(tiles_of_kind(kind, 5, m))
    masks = two_approximation(scores, n)
    assert torch.equal(masks, torch.stack([two_approximation_by_hand(score, n) for score in scores]))
    assert is_feasible(masks, n, at_most=True)


def test_two_approximation_prunes_at_most_twice_the_least() -> None:
    """Its guarantee, and the density of .37 at 2:4 that followers report."""
    scores = scores_of(torch.randn(400, 4, 4))
    masks = two_approximation(scores, 2)
    least = torch.tensor([float(score.sum()) - optimum(score, 2, at_most=True) for score in scores[:50]])
    assert bool((kept(scores, ~masks)[:50] <= 2 * least + 1).all())
    assert float(masks.float().mean()) == pytest.approx(0.37, abs=0.015)


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(1, 5), (2, 4), (4, 8), (8, 16), (16, 32)])
def test_filled_masks_are_full(n: int, m: int, kind: str) -> None:
    """Exactly N of every row and column, without moving more entries than needed."""
    scores = scores_of(tiles_of_kind(kind, 4, m))
    short = greedy(scores, n)
    full = fill(scores, short, n)
    assert is_feasible(full, n)
    missing = n * m - short.sum((1, 2))
    assert bool(((full != short).sum((1, 2)) <= 3 * missing).all())


def test_the_exchange_that_fills_is_the_best() -> None:
    """Row 0 and column 0 lack one: of all (x, y), the one of largest gain."""
    scores = torch.tensor([[[9.0, 4.0, 5.0], [7.0, 8.0, 1.0], [6.0, 2.0, 9.0]]], dtype=torch.float64)
    mask = torch.tensor([[[False, False, False], [False, True, False], [False, False, True]]])
    # instead of (1, 1): 4 + 7 - 8 = 3; instead of (2, 2): 5 + 6 - 9 = 2
    assert fill(scores, mask, 1)[0].tolist() == [[False, True, False], [True, False, False], [False, False, True]]
