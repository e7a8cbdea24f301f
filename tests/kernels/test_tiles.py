"""Transposable masks: feasible on any tile, optimal where promised, never worse than greedy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, milp
from torch import Tensor

from lightning_nm.kernels import tiles

ODD_TILES = {
    "gaussian": lambda b, m: torch.randn(b, m, m),
    "ties": lambda b, m: torch.randint(-2, 3, (b, m, m)).float(),
    "zeros": lambda b, m: torch.zeros(b, m, m),
    "one row": lambda b, m: torch.randn(b, m, m) * (torch.arange(m) == 0)[:, None],
    "tiny": lambda b, m: torch.randn(b, m, m) * 1e-6,
    "huge": lambda b, m: torch.randn(b, m, m) * 1e6,
    "outlier": lambda b, m: torch.randn(b, m, m).index_fill(1, torch.tensor([0]), 1e30),
    "bfloat16": lambda b, m: torch.randn(b, m, m).bfloat16(),
    "float16 subnormals": lambda b, m: (torch.randn(b, m, m) * 1e-7).half(),
}


def optimum(scores: Tensor, n: int) -> float:
    """By a linear program (whose optimum is integral), with nothing of ours in it."""
    m = scores.shape[0]
    sums = np.zeros((2 * m, m * m))
    for i in range(m):
        sums[i, i * m : (i + 1) * m] = 1
        sums[m + i, i::m] = 1
    found = milp(-scores.numpy().ravel() / 2.0**40, constraints=LinearConstraint(sums, n, n), bounds=(0, 1))
    return float(-found.fun * 2.0**40)


def is_feasible(masks: Tensor, n: int) -> bool:
    return bool((masks.sum(1) == n).all() and (masks.sum(2) == n).all())


def kept(scores: Tensor, masks: Tensor) -> Tensor:
    return (scores * masks).sum((1, 2))


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (4, 4), (1, 8), (4, 8), (3, 7), (6, 12)])
def test_the_best_mask_is_found(n: int, m: int, kind: str) -> None:
    """N of every row and column, of as much magnitude as a linear program finds."""
    torch.manual_seed(0)
    scores = tiles.scores_of(ODD_TILES[kind](6, m))
    masks = tiles.solve(scores, n, m)
    assert is_feasible(masks, n)
    for score, value in zip(scores, kept(scores, masks)):
        assert float(value) == pytest.approx(optimum(score, n), rel=1e-7)


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(4, 8), (8, 16), (16, 32)])
def test_swaps_are_feasible_and_no_worse_than_greedy(n: int, m: int, kind: str) -> None:
    """On every single tile."""
    torch.manual_seed(0)
    scores = tiles.scores_of(ODD_TILES[kind](4, m))
    greedy = tiles.greedy(scores, n)
    assert bool((greedy.sum(1) <= n).all() and (greedy.sum(2) <= n).all())
    filled = tiles.fill(scores, greedy, n)
    swapped = tiles.improve(scores, filled, 2)
    assert is_feasible(filled, n)
    assert is_feasible(swapped, n)
    assert bool((kept(scores, swapped) >= kept(scores, filled)).all())
    assert bool((kept(scores, swapped) >= kept(scores, greedy)).all())


def test_two_of_four_has_ninety_masks() -> None:
    """The table holds each transposable mask once."""
    assert len(tiles.all_masks(2, 4)) == 90
    choices = tiles.row_choices(2, 4)
    by_hand = {c for c in product(range(6), repeat=4) if bool((choices[list(c)].sum(0) == 2).all())}
    assert {tuple(mask.tolist()) for mask in tiles.all_masks(2, 4)} == by_hand


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_a_batch_is_its_tiles(n: int, m: int) -> None:
    """The mask of a tile does not depend on what it is solved with."""
    torch.manual_seed(0)
    scores = tiles.scores_of(torch.randn(20, m, m))
    together = tiles.solve(scores, n, m)
    for batch in (1, 7):
        assert torch.equal(torch.cat([tiles.solve(some, n, m) for some in scores.split(batch)]), together)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.data())
def test_any_n_and_m(m: int, data: st.DataObject) -> None:
    """Feasible for any 0 < N <= M, whatever the magnitudes."""
    n = data.draw(st.integers(1, m))
    values = data.draw(st.lists(st.floats(-1e4, 1e4), min_size=m * m, max_size=m * m))
    scores = tiles.scores_of(torch.tensor(values).view(1, m, m))
    assert is_feasible(tiles.solve(scores, n, m), n)


@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"), [((8, 12), 1, 0), ((12, 8), 0, 1), ((8, 4, 3, 3), 1, 0), ((4, 8, 5), 0, 1)]
)
def test_tiles_are_those_of_outputs_and_inputs(shape: tuple[int, ...], inputs: int, outputs: int) -> None:
    """Every tile is a block of true (outputs, inputs) at one tap, and comes back to its place."""
    weight = torch.arange(torch.Size(shape).numel()).view(shape)
    cut = tiles.tiles_of(weight, 4, inputs, outputs)
    assert cut.shape == (weight.numel() // 16, 4, 4)
    rows = weight.movedim((outputs, inputs), (0, 1)).reshape(shape[outputs], shape[inputs], -1)  # [O, I, T]
    blocks = {
        tuple(rows[o : o + 4, i : i + 4, t].flatten().tolist())
        for o in range(0, rows.shape[0], 4)
        for i in range(0, rows.shape[1], 4)
        for t in range(rows.shape[2])
    }
    assert {tuple(tile.flatten().tolist()) for tile in cut} == blocks
    assert torch.equal(tiles.untiled(cut, weight.shape, inputs, outputs), weight)
