"""`lightning_nm.kernels.transposable.cycles`, compiled by numba, one tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nm.kernels.cpu.compiled import compiled
from lightning_nm.kernels.transposable.layout import NEVER as _NEVER


@compiled
def _slack(held: Any, n: Any) -> None:
    """One more row and column, with which every row and column holds N."""
    m = len(held) - 1
    held[m, :] = n
    held[:, m] = n
    held[m, m] = 0
    for i in range(m):
        for j in range(m):
            held[i, m] -= held[i, j]
            held[m, j] -= held[i, j]
            held[m, m] += held[i, j]


@compiled
def _refresh(w: Any, held: Any, most: Any, moved: Any, takes: Any, gives: Any, gain: Any, column: Any) -> None:
    """What each row gains by taking from each other, and the best column; only where one of both has ``moved``."""
    rows = len(w)
    for i in range(rows):
        if moved[i]:
            for j in range(rows):
                takes[i, j] = w[i, j] if held[i, j] < most[i, j] else _NEVER
                gives[i, j] = -w[i, j] if held[i, j] > 0 else _NEVER
    for i in range(rows):
        for k in range(rows):
            if moved[i] or moved[k]:
                best, at = takes[i, 0] + gives[k, 0], 0
                for j in range(1, rows):
                    value = takes[i, j] + gives[k, j]
                    if value > best:
                        best, at = value, j
                gain[i, k] = best
                column[i, k] = at
    moved[:] = False


@compiled
def _move(held: Any, column: Any, moved: Any, taker: Any, giver: Any) -> None:
    held[taker, column[taker, giver]] += 1
    held[giver, column[taker, giver]] -= 1
    moved[taker] = True


@compiled
def _swap(gain: Any, column: Any, held: Any, moved: Any) -> bool:
    """Apply the best positive cycle of two rows; whether there was one."""
    rows = len(gain)
    best, start, via = 0.0, -1, 0
    for i in range(rows):
        for j in range(i + 1, rows):
            if gain[i, j] + gain[j, i] > best:
                best, start, via = gain[i, j] + gain[j, i], i, j
    if start < 0:
        return False
    _move(held, column, moved, via, start)
    _move(held, column, moved, start, via)
    return True


@compiled
def _optimal(gain: Any, value: Any, fresh: Any) -> bool:
    """Whether there is no positive cycle of any length: longest walks stop growing (Bellman and Ford)."""
    rows = len(gain)
    value[:] = 0.0
    for _ in range(rows):
        grew = False
        for i in range(rows):
            best = value[i]
            for j in range(rows):
                best = max(best, gain[i, j] + value[j])
            fresh[i] = best
            grew |= best > value[i]
        value, fresh = fresh, value
        if not grew:
            return True
    return False


@compiled
def _cancel(gain: Any, column: Any, held: Any, moved: Any, walk: Any, longer: Any, before: Any) -> bool:
    """Apply the best of the shortest positive cycles; whether there was one."""
    rows = len(gain)
    for i in range(rows):
        for k in range(rows):
            walk[i, k] = gain[i, k]
    for length in range(rows - 1):
        for i in range(rows):
            for k in range(rows):
                best, at = walk[i, 0] + gain[0, k], 0
                for j in range(1, rows):
                    value = walk[i, j] + gain[j, k]
                    if value > best:
                        best, at = value, j
                longer[i, k] = max(best, _NEVER)
                before[length, i, k] = at
        walk, longer = longer, walk
        best, start = 0.0, -1
        for i in range(rows):
            if walk[i, i] > best:
                best, start = walk[i, i], i
        if start >= 0:
            giver = start
            for step in range(length, -1, -1):
                taker = before[step, start, giver]
                _move(held, column, moved, taker, giver)
                giver = taker
            _move(held, column, moved, start, giver)
            return True
    return False


@compiled
def _improve(scores: Any, masks: Any, n: Any, at_most: Any, swaps_only: Any) -> None:
    m = scores.shape[1]
    rows = m + 1 if at_most else m
    w, held, most = np.zeros((rows, rows)), np.empty((rows, rows), np.int64), np.ones((rows, rows), np.int64)
    if at_most:
        most[m, :] = m * n
        most[:, m] = m * n
    moved = np.empty(rows, np.bool_)
    takes, gives, gain = np.empty((rows, rows)), np.empty((rows, rows)), np.empty((rows, rows))
    walk, longer, value, fresh = np.empty((rows, rows)), np.empty((rows, rows)), np.empty(rows), np.empty(rows)
    column, before = np.empty((rows, rows), np.int64), np.empty((rows, rows, rows), np.int64)
    for t in range(len(scores)):
        for i in range(m):
            for j in range(m):
                w[i, j] = scores[t, i, j]
                held[i, j] = masks[t, i, j]
        if at_most:
            _slack(held, n)
        moved[:] = True
        while True:
            _refresh(w, held, most, moved, takes, gives, gain, column)
            if _swap(gain, column, held, moved):
                continue
            if swaps_only or _optimal(gain, value, fresh):
                break
            if not _cancel(gain, column, held, moved, walk, longer, before):
                break
        for i in range(m):
            for j in range(m):
                masks[t, i, j] = held[i, j] > 0


def improve(scores: Tensor, mask: Tensor, n: int, *, at_most: bool, swaps_only: bool = False) -> Tensor:
    """Cancel positive cycles, the shortest ones first, until there are none; ``swaps_only``: none of two rows."""
    masks = mask.clone(memory_format=torch.contiguous_format)
    _improve(scores.contiguous().numpy(), masks.numpy(), n, at_most, swaps_only)
    return masks
