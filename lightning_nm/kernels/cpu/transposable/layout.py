"""`lightning_nm.kernels.transposable.layout.scores_of`, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nm.kernels.cpu.compiled import compiled
from lightning_nm.kernels.transposable.layout import units


@compiled
def _scores(tiles: Any, units: Any) -> None:
    batch, m, _ = tiles.shape
    for t in range(batch):
        largest = 0.0
        for i in range(m):
            for j in range(m):
                value = abs(tiles[t, i, j])
                tiles[t, i, j] = min(value, np.finfo(np.float64).max) if value == value else 0.0
                largest = max(largest, tiles[t, i, j])
        largest = largest if largest > 0.0 else 1.0
        for i in range(m):
            for j in range(m):
                tiles[t, i, j] = np.rint(tiles[t, i, j] / largest * units)


def scores_of(tiles: Tensor) -> Tensor:
    """Magnitudes in whole units, float64 ``[B, M, M]``."""
    scores = tiles.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
    _scores(scores.numpy(), units(tiles.shape[1]))
    return scores
