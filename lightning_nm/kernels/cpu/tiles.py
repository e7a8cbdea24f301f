"""The solver of `lightning_nm.kernels.tiles`, compiled by numba, one tile at a time: same masks, same ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lightning_nm.kernels.tiles import NEVER as _NEVER
from lightning_nm.kernels.tiles import all_masks, row_choices


@njit(cache=True)
def _greedy(w: Any, mask: Any, in_row: Any, in_column: Any, n: Any) -> None:
    m = w.shape[0]
    order = np.argsort(-w.ravel(), kind="mergesort")  # stable: ties by index
    mask[:] = False
    in_row[:] = 0
    in_column[:] = 0
    for entry in order:
        row, column = entry // m, entry % m
        if in_row[row] < n and in_column[column] < n:
            mask[row, column] = True
            in_row[row] += 1
            in_column[column] += 1


@njit(cache=True)
def _fill(w: Any, mask: Any, in_row: Any, in_column: Any, n: Any) -> None:
    m = w.shape[0]
    i = 0
    while i < m:
        if in_row[i] == n:
            i += 1
            continue
        j = 0
        while in_column[j] == n:
            j += 1
        best, x, y = 2 * _NEVER, 0, 0
        for row in range(m):
            if mask[row, j]:
                continue
            for column in range(m):
                if mask[row, column] and not mask[i, column]:
                    gain = w[i, column] + w[row, j] - w[row, column]
                    if gain > best:
                        best, x, y = gain, row, column
        mask[x, y] = False
        mask[i, y] = True
        mask[x, j] = True
        in_row[i] += 1
        in_column[j] += 1


@njit(cache=True)
def _gains(w: Any, mask: Any, taken: Any, given: Any, gain: Any, column: Any) -> None:
    m = w.shape[0]
    for i in range(m):
        for j in range(m):
            taken[i, j] = _NEVER if mask[i, j] else w[i, j]
            given[i, j] = -w[i, j] if mask[i, j] else _NEVER
    for i in range(m):
        for k in range(m):
            best, at = taken[i, 0] + given[k, 0], 0
            for j in range(1, m):
                value = taken[i, j] + given[k, j]
                if value > best:
                    best, at = value, j
            gain[i, k] = best
            column[i, k] = at


@njit(cache=True)
def _swap(gain: Any, column: Any, mask: Any) -> bool:
    """Apply the best positive cycle of two rows; whether there was one."""
    m = gain.shape[0]
    best, start, via = 0.0, -1, 0
    for i in range(m):
        here, at = gain[i, 0] + gain[0, i], 0
        for j in range(1, m):
            value = gain[i, j] + gain[j, i]
            if value > here:
                here, at = value, j
        if here > best:
            best, start, via = here, i, at
    if start < 0:
        return False
    _move(mask, column, via, start)
    _move(mask, column, start, via)
    return True


@njit(cache=True)
def _move(mask: Any, column: Any, taker: Any, giver: Any) -> None:
    moved = column[taker, giver]
    mask[taker, moved] = True
    mask[giver, moved] = False


@njit(cache=True)
def _optimal(gain: Any, value: Any, fresh: Any) -> bool:
    """Whether there is no positive cycle of any length: longest walks stop growing (Bellman and Ford)."""
    m = gain.shape[0]
    value[:] = 0.0
    for _ in range(m):
        grew = False
        for i in range(m):
            best = value[i]
            for j in range(m):
                best = max(best, gain[i, j] + value[j])
            fresh[i] = best
            grew |= best > value[i]
        value[:] = fresh
        if not grew:
            return True
    return False


@njit(cache=True)
def _cancel(gain: Any, column: Any, mask: Any, walk: Any, longer: Any, before: Any, longest: Any) -> bool:
    """Apply the best of the shortest positive cycles; whether there was one."""
    m = gain.shape[0]
    walk[:] = gain
    for length in range(longest - 1):
        for i in range(m):
            for k in range(m):
                best, at = walk[i, 0] + gain[0, k], 0
                for j in range(1, m):
                    value = walk[i, j] + gain[j, k]
                    if value > best:
                        best, at = value, j
                longer[i, k] = max(best, _NEVER)
                before[length, i, k] = at
        walk[:] = longer
        best, start = 0.0, -1
        for i in range(m):
            if walk[i, i] > best:
                best, start = walk[i, i], i
        if start >= 0:
            giver = start
            for step in range(length, -1, -1):
                taker = before[step, start, giver]
                _move(mask, column, taker, giver)
                giver = taker
            _move(mask, column, start, giver)
            return True
    return False


@njit(cache=True, nogil=True)
def _solve(scores: Any, masks: Any, n: Any, longest: Any) -> None:
    m = scores.shape[1]
    in_row, in_column = np.zeros(m, np.int64), np.zeros(m, np.int64)
    taken, given, gain, walk, longer = (
        np.empty((m, m)),
        np.empty((m, m)),
        np.empty((m, m)),
        np.empty((m, m)),
        np.empty((m, m)),
    )
    column = np.empty((m, m), np.int64)
    before = np.empty((max(longest - 1, 1), m, m), np.int64)
    value, fresh = np.empty(m), np.empty(m)
    for tile in range(len(scores)):
        w, mask = scores[tile], masks[tile]
        _greedy(w, mask, in_row, in_column, n)
        _fill(w, mask, in_row, in_column, n)
        if longest < 2:
            continue
        while True:
            _gains(w, mask, taken, given, gain, column)
            if _swap(gain, column, mask):
                continue
            if longest == 2 or _optimal(gain, value, fresh):
                break
            if not _cancel(gain, column, mask, walk, longer, before, longest):
                break


@njit(cache=True, nogil=True)
def _by_table(scores: Any, masks: Any, choices: Any, table: Any) -> None:
    m = scores.shape[1]
    rows = np.empty((m, len(choices)))
    for tile in range(len(scores)):
        for i in range(m):
            for c in range(len(choices)):
                kept = 0.0
                for j in range(m):
                    kept += choices[c, j] * scores[tile, i, j]
                rows[i, c] = kept
        best, at = -1.0, 0
        for t in range(len(table)):
            kept = 0.0
            for i in range(m):
                kept += rows[i, table[t, i]]
            if kept > best:
                best, at = kept, t
        for i in range(m):
            for j in range(m):
                masks[tile, i, j] = choices[table[at, i], j]


def solve(scores: Tensor, n: int, longest: int) -> Tensor:
    """`lightning_nm.kernels.tiles.solve` of scores on a CPU."""
    masks, m = np.empty(scores.shape, np.bool_), scores.shape[1]
    w = scores.contiguous().numpy()
    if m <= 4:
        _by_table(w, masks, row_choices(n, m).numpy(), all_masks(n, m).numpy())
    else:
        _solve(w, masks, n, longest)
    return torch.from_numpy(masks)
