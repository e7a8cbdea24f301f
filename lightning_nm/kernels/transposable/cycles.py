"""Improve transposable masks by cancelling positive cycles; a mask without any is the best of all.

A tile is a flow network: rows hold N units of columns. Along a cycle every row takes one unit from the next row, in
the same column; sums of rows and columns stay. No positive cycle is left exactly where no mask keeps more
(Klein, 1967). With N *at most*, one more row and column hold what is missing, at no magnitude.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_nm.kernels.transposable.layout import NEVER


def improve(scores: Tensor, mask: Tensor, n: int, *, at_most: bool, swaps_only: bool = False) -> Tensor:
    """Cancel positive cycles, the shortest ones first, until there are none; ``swaps_only``: none of two rows."""
    m = scores.shape[1]
    if at_most:
        scores, held, most = pad(scores, (0, 1, 0, 1)), _with_slack(mask.long(), n), torch.full((m + 1, m + 1), m * n)
        most[:m, :m] = 1
        most = most.to(mask.device)
    else:
        held, most = mask.long(), torch.ones(m, m, dtype=torch.long, device=mask.device)
    active = torch.arange(len(mask), device=mask.device)
    longest = 2 if swaps_only else scores.shape[1]
    while len(active):
        cancelled = _cancel(scores[active], held, most, active, longest)
        active = active[cancelled]
    return held[:, :m, :m] > 0


def _with_slack(held: Tensor, n: int) -> Tensor:
    """One more row and column, with which every row and column holds N; their own sum, M N, makes the corner."""
    total = held.sum((1, 2))
    held = pad(held, (0, 1, 0, 1))
    held[:, :-1, -1] = n - held.sum(2)[:, :-1]
    held[:, -1, :-1] = n - held.sum(1)[:, :-1]
    held[:, -1, -1] = total
    return held


def _cancel(w: Tensor, held: Tensor, most: Tensor, active: Tensor, longest: int) -> Tensor:
    """Cancel the best shortest positive cycle of each active tile; which tiles had one, bool ``[B]``."""
    h = held[active]
    takes, gives = torch.where(h < most, w, NEVER), torch.where(h > 0, -w, NEVER)
    # what row i gains by taking column j from row k, at the best j: [B, i, k]
    gain, column = _best_sum(takes, gives.transpose(1, 2))
    found = torch.zeros(len(active), dtype=torch.bool, device=w.device)
    walk, steps = gain, []  # best walks of so many steps, and the row before the last
    for _ in range(longest - 1):
        walk, before = _best_sum(walk, gain)
        walk = walk.clamp(min=NEVER)
        steps.append(before)
        best, start = walk.diagonal(dim1=1, dim2=2).max(1)
        fresh = ((best > 0) & ~found).nonzero().squeeze(1)
        if len(fresh):
            _apply(held, active[fresh], column[fresh], [b[fresh] for b in steps], start[fresh])
            found[fresh] = True
        if bool(found.all()):
            break
    return found


def _best_sum(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix product with max for sum and sum for product, and the first index of each maximum."""
    best = left[:, :, :1] + right[:, :1]
    at = torch.zeros(best.shape, dtype=torch.long, device=best.device)
    for j in range(1, right.shape[1]):
        value = left[:, :, j : j + 1] + right[:, j : j + 1]
        better = value > best
        best = torch.where(better, value, best)
        at = torch.where(better, j, at)
    return best, at


def _apply(held: Tensor, tiles: Tensor, column: Tensor, steps: list[Tensor], start: Tensor) -> None:
    """Follow each cycle back from where it closes."""
    here = torch.arange(len(tiles), device=held.device)
    giver = start
    for before in reversed([None, *steps]):
        taker = start if before is None else before[here, start, giver]
        moved = column[here, taker, giver]
        held[tiles, taker, moved] += 1
        held[tiles, giver, moved] -= 1
        giver = taker
