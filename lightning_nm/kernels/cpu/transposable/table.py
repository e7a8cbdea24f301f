"""`lightning_nm.kernels.transposable.table`, compiled by numba: eight tiles at a time, one in each vector lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nm.kernels.cpu.compiled import compiled
from lightning_nm.kernels.transposable.table import all_masks, row_choices

_LANES = 8
_KEYS = 128
"""More masks than any table has. A sum of scores times this, plus the rank of the mask, is still a whole number
that float64 holds, so that one maximum finds the best sum and the first mask that has it."""


@compiled
def _by_table(scores: Any, masks: Any, choices: Any, table: Any) -> None:
    batch, m, _ = scores.shape
    keys = np.empty((m, m, _LANES))
    rows = np.empty((m, len(choices), _LANES))
    best = np.empty(_LANES)
    for first in range(0, batch, _LANES):
        lanes = min(_LANES, batch - first)
        for i in range(m):
            for j in range(m):
                for lane in range(_LANES):
                    keys[i, j, lane] = scores[first + min(lane, lanes - 1), i, j] * _KEYS
        for i in range(m):
            for c in range(len(choices)):
                rows[i, c, :] = 0.0
                for j in range(m):
                    if choices[c, j]:
                        for lane in range(_LANES):
                            rows[i, c, lane] += keys[i, j, lane]
        best[:] = -1.0
        for t in range(len(table)):
            rank = float(len(table) - 1 - t)
            if m == 4:
                r0, r1, r2, r3 = rows[0, table[t, 0]], rows[1, table[t, 1]], rows[2, table[t, 2]], rows[3, table[t, 3]]
                for lane in range(_LANES):
                    best[lane] = max(best[lane], (r0[lane] + r1[lane]) + (r2[lane] + r3[lane]) + rank)
            else:
                for lane in range(_LANES):
                    kept = rank
                    for i in range(m):
                        kept += rows[i, table[t, i], lane]
                    best[lane] = max(best[lane], kept)
        for lane in range(lanes):
            at = len(table) - 1 - int(best[lane]) % _KEYS
            for i in range(m):
                for j in range(m):
                    masks[first + lane, i, j] = choices[table[at, i], j]


def by_table(scores: Tensor, n: int) -> Tensor:
    """The mask of largest magnitude; the first of the table where there are several."""
    masks, m = torch.empty(scores.shape, dtype=torch.bool), scores.shape[1]
    table = all_masks(n, m).numpy()
    assert len(table) <= _KEYS
    _by_table(scores.contiguous().numpy(), masks.numpy(), row_choices(n, m).numpy(), table)
    return masks
