"""Transposable masks: exactly N of every row and of every column of an M x M tile, in plain torch.

What every compiled solver must equal, bit for bit. All solvers work on whole numbers (magnitudes as fractions
of 2^40 of their tile's largest), so that sums are exact: the result depends on no order of summation, device or batch.
Ties go to the lowest index.

Shapes: B tiles, ``scores`` float64 ``[B, M, M]``, masks bool ``[B, M, M]``.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor

_UNITS = 2.0**40
NEVER = -(2.0**52)  # less than any sum of scores, and still exact when two are added


def scores_of(tiles: Tensor) -> Tensor:
    """Magnitudes in whole units. NaN and infinity count as the largest and as nothing: their mask means nothing."""
    wide = torch.nan_to_num(tiles.detach().double().abs(), nan=0.0, posinf=torch.finfo(torch.float64).max)
    largest = wide.amax((1, 2), keepdim=True)
    return torch.round(wide / torch.where(largest > 0, largest, 1.0) * _UNITS)


@cache
def row_choices(n: int, m: int) -> Tensor:
    """Every way to keep ``n`` of ``m``: bool ``[C, M]``."""
    return torch.tensor([[j in kept for j in range(m)] for kept in combinations(range(m), n)])


@cache
def all_masks(n: int, m: int) -> Tensor:
    """Every transposable mask as the choice for each of its rows: int64 ``[masks, M]``; 90 for 2:4."""
    choices = row_choices(n, m).int()
    rows = range(len(choices))
    fits = [c for c in product(rows, repeat=m) if bool((choices[list(c)].sum(0) == n).all())]
    return torch.tensor(fits)


def by_table(scores: Tensor, n: int) -> Tensor:
    """The best mask of all: for M up to 4."""
    m = scores.shape[1]
    choices = row_choices(n, m).to(scores.device)
    masks = all_masks(n, m).to(scores.device)
    rows = torch.where(choices, scores[:, :, None, :], 0.0).sum(-1)  # [B, M, C]
    kept = torch.stack([rows[:, i, masks[:, i]] for i in range(m)]).sum(0)  # [B, masks]
    return choices[masks[kept.argmax(1)]]


def greedy(scores: Tensor, n: int) -> Tensor:
    """Heaviest entry first, wherever its row and column have room. Tiles may end short of N."""
    tiles, m, _ = scores.shape
    order = scores.reshape(tiles, -1).sort(dim=1, descending=True, stable=True).indices
    here = torch.arange(tiles, device=scores.device)
    mask = torch.zeros(tiles, m * m, dtype=torch.bool, device=scores.device)
    in_row, in_column = (torch.zeros(tiles, m, dtype=torch.int32, device=scores.device) for _ in range(2))
    for entry in order.unbind(1):
        row, column = entry // m, entry % m
        takes = (in_row[here, row] < n) & (in_column[here, column] < n)
        mask[here, entry] = takes
        in_row[here, row] += takes
        in_column[here, column] += takes
    return mask.view(tiles, m, m)


def fill(scores: Tensor, mask: Tensor, n: int) -> Tensor:
    """Complete masks that have room in some row i and column j, by the best exchange.

    Keep (i, y) and (x, j) instead of (x, y). After `greedy` there always is one.
    """
    mask = mask.clone()
    m = scores.shape[1]
    active = (mask.sum(2) < n).any(1).nonzero().squeeze(1)
    while len(active):
        s, w = mask[active], scores[active]
        here = torch.arange(len(active), device=w.device)
        i = (s.sum(2) < n).int().argmax(1)
        j = (s.sum(1) < n).int().argmax(1)
        gains = torch.where(s[here, i], NEVER, w[here, i])[:, None, :]  # by (i, y)
        gains = gains + torch.where(s[here, :, j], NEVER, w[here, :, j])[:, :, None]  # by (x, j)
        exchange = torch.where(s, gains - w, 2 * NEVER).flatten(1).argmax(1)
        x, y = exchange // m, exchange % m
        mask[active, x, y] = False
        mask[active, i, y] = True
        mask[active, x, j] = True
        active = active[(mask[active].sum(2) < n).any(1)]
    return mask


def improve(scores: Tensor, mask: Tensor, longest: int) -> Tensor:
    """Cancel positive cycles, the shortest ones first, until there are none of at most ``longest`` rows.

    Along a cycle every row takes one entry from the next row, in the same column; sums of rows and columns
    stay. A mask without any positive cycle is optimal (``longest = M``); ``longest = 2`` swaps only.
    """
    mask = mask.clone()
    active = torch.arange(len(mask), device=mask.device)
    while len(active):
        cancelled = _cancel(scores[active], mask, active, longest)
        active = active[cancelled]
    return mask


def _cancel(w: Tensor, mask: Tensor, active: Tensor, longest: int) -> Tensor:
    """Cancel the best shortest positive cycle of each active tile; which tiles had one, bool ``[B]``."""
    s = mask[active]
    # what row i gains by taking column j from row k, at the best j: [B, i, k]
    gain, column = (torch.where(s, NEVER, w)[:, :, None, :] + torch.where(s, -w, NEVER)[:, None, :, :]).max(3)
    found = torch.zeros(len(active), dtype=torch.bool, device=w.device)
    walk, steps = gain, []  # best walks of so many steps, and the row before the last
    for _ in range(longest - 1):
        walk, before = (walk[:, :, :, None] + gain[:, None, :, :]).max(2)
        walk = walk.clamp(min=NEVER)
        steps.append(before)
        best, start = walk.diagonal(dim1=1, dim2=2).max(1)
        fresh = ((best > 0) & ~found).nonzero().squeeze(1)
        if len(fresh):
            _apply(mask, active[fresh], column[fresh], [b[fresh] for b in steps], start[fresh])
            found[fresh] = True
        if bool(found.all()):
            break
    return found


def _apply(mask: Tensor, tiles: Tensor, column: Tensor, steps: list[Tensor], start: Tensor) -> None:
    """Follow each cycle back from where it closes."""
    here = torch.arange(len(tiles), device=mask.device)
    giver = start
    for before in reversed([None, *steps]):
        taker = start if before is None else before[here, start, giver]
        moved = column[here, taker, giver]
        mask[tiles, taker, moved] = True
        mask[tiles, giver, moved] = False
        giver = taker


def solve(scores: Tensor, n: int, longest: int) -> Tensor:
    """The mask after `greedy`, `fill` and `improve`; for M up to 4 the best of all."""
    if scores.shape[1] <= 4:
        return by_table(scores, n)
    return improve(scores, fill(scores, greedy(scores, n), n), longest)


def tiles_of(weight: Tensor, m: int, inputs: int, outputs: int) -> Tensor:
    """The M x M tiles of (outputs, inputs) at every tap: ``[B, M, M]``."""
    rows = weight.movedim((outputs, inputs), (-2, -1))
    tiles: Tensor = rows.unflatten(-1, (-1, m)).unflatten(-3, (-1, m)).transpose(-3, -2)  # type: ignore[no-untyped-call]
    return tiles.reshape(-1, m, m)


def untiled(masks: Tensor, shape: torch.Size, inputs: int, outputs: int) -> Tensor:
    """`tiles_of` backwards, for a weight of ``shape``."""
    m = masks.shape[1]
    taps = [size for dim, size in enumerate(shape) if dim not in (inputs, outputs)]
    tiles = masks.view(*taps, shape[outputs] // m, shape[inputs] // m, m, m)
    rows = tiles.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
    return rows.movedim((-2, -1), (outputs, inputs)).contiguous()
