"""The table of all masks, for M up to 4."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lightning_nm.kernels.transposable.layout import scores_of
from lightning_nm.kernels.transposable.table import all_masks, by_table, row_choices
from tests.kernels.transposable.cases import ODD_TILES, is_feasible, kept, optimum, tiles_of_kind


def test_two_of_four_has_ninety_masks() -> None:
    """The table holds each transposable mask once."""
    assert len(all_masks(2, 4)) == 90
    choices = row_choices(2, 4)
    by_hand = {c for c in product(range(6), repeat=4) if bool((choices[list(c)].sum(0) == 2).all())}
    assert {tuple(mask.tolist()) for mask in all_masks(2, 4)} == by_hand


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 3), (2, 4), (3, 4), (4, 4)])
def test_the_best_mask_is_found(n: int, m: int, kind: str) -> None:
    """As much as a linear program finds."""
    scores = scores_of(tiles_of_kind(kind, 6, m))
    masks = by_table(scores, n)
    assert is_feasible(masks, n)
    assert kept(scores, masks).tolist() == pytest.approx([optimum(score, n) for score in scores], rel=1e-9)


def test_ties_go_to_the_first_mask() -> None:
    """In the order of the table."""
    first = row_choices(2, 4)[all_masks(2, 4)[0]]
    assert torch.equal(by_table(torch.ones(1, 4, 4, dtype=torch.float64), 2)[0], first)
