"""`lightning_nm.kernels.transposable.greedy`, compiled by numba, one tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nm.kernels.cpu.compiled import compiled
from lightning_nm.kernels.transposable.layout import NEVER as _NEVER


@compiled
def _greedy(priority: Any, masks: Any, n: Any) -> None:
    batch, m, _ = priority.shape
    in_row, in_column = np.empty(m, np.int64), np.empty(m, np.int64)
    for t in range(batch):
        order = np.argsort(-priority[t].ravel(), kind="mergesort")  # stable: ties by index
        in_row[:] = 0
        in_column[:] = 0
        for entry in order:
            row, column = entry // m, entry % m
            if in_row[row] < n and in_column[column] < n:
                masks[t, row, column] = True
                in_row[row] += 1
                in_column[column] += 1


@compiled
def _fill(w: Any, mask: Any, n: Any) -> None:
    m = len(w)
    in_row, in_column = np.zeros(m, np.int64), np.zeros(m, np.int64)
    for i in range(m):
        for j in range(m):
            in_row[i] += mask[i, j]
            in_column[j] += mask[i, j]
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


@compiled
def _fill_all(scores: Any, masks: Any, n: Any) -> None:
    for t in range(len(scores)):
        _fill(scores[t], masks[t], n)


def greedy(priority: Tensor, n: int) -> Tensor:
    """Largest priority first, wherever row and column have room."""
    masks = torch.zeros(priority.shape, dtype=torch.bool)
    _greedy(priority.contiguous().numpy(), masks.numpy(), n)
    return masks


def fill(scores: Tensor, mask: Tensor, n: int) -> Tensor:
    """Complete masks that have room in some row and column, by the best exchange."""
    masks = mask.clone(memory_format=torch.contiguous_format)
    _fill_all(scores.contiguous().numpy(), masks.numpy(), n)
    return masks
