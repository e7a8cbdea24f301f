"""`lightning_nm.kernels.transposable.entropic`, compiled by numba, one tile at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nm.kernels.cpu.compiled import compiled
from lightning_nm.kernels.transposable import entropic
from lightning_nm.kernels.transposable.layout import units

_BITS, _STAGES, _CHORD = entropic.BITS, entropic.STAGES, entropic.CHORD
_POWERS = np.array(entropic.POWERS)


@compiled
def _fold(terms: Any) -> None:
    """The sum over the first axis into its first row, the second half onto the first until one is left."""
    size, m = terms.shape
    while size > 1:
        half = (size + 1) // 2
        for row in range(size - half):
            for j in range(m):
                terms[row, j] += terms[half + row, j]
        size = half


@compiled
def _plan(w: Any, kernel: Any, across: Any, terms: Any, a: Any, b: Any, n: Any, units: Any) -> None:
    """The plan replaces ``kernel``; ``across`` is the kernel's transpose, so that both sums run along vectors."""
    m = len(w)
    a[:] = 1.0
    b[:] = 1.0
    for i in range(m):
        for j in range(m):
            exponent = w[i, j] * (_BITS / units)
            whole = np.floor(exponent)
            rest = exponent - whole
            kernel[i, j] = _POWERS[int(whole)] * (1.0 + rest * (_CHORD + (1.0 - _CHORD) * rest))
            across[j, i] = kernel[i, j]
    for stage in range(len(_STAGES)):
        if stage:
            for i in range(m):
                a[i] *= a[i]
                b[i] *= b[i]
                for j in range(m):
                    kernel[i, j] *= kernel[i, j]
                    across[i, j] *= across[i, j]
        for _ in range(_STAGES[stage]):
            for j in range(m):
                for i in range(m):
                    terms[j, i] = min(a[i] * b[j] * across[j, i], 1.0)
            _fold(terms)
            rows = n / terms[0]
            for i in range(m):
                for j in range(m):
                    terms[i, j] = rows[i] * min(a[i] * b[j] * kernel[i, j], 1.0)
            _fold(terms)
            for i in range(m):
                a[i] *= rows[i]
                b[i] *= n / terms[0, i]
    for i in range(m):
        for j in range(m):
            kernel[i, j] = a[i] * b[j] * kernel[i, j]


@compiled
def _plan_all(scores: Any, plans: Any, n: Any, units: Any) -> None:
    batch, m, _ = scores.shape
    across, terms, a, b = np.empty((m, m)), np.empty((m, m)), np.empty(m), np.empty(m)
    for t in range(batch):
        _plan(scores[t], plans[t], across, terms, a, b, n, units)


def plan(scores: Tensor, n: int) -> Tensor:
    """How much every entry wants to be kept, float64 ``[B, M, M]``."""
    plans = torch.empty(scores.shape, dtype=torch.float64)
    _plan_all(scores.contiguous().numpy(), plans.numpy(), n, units(scores.shape[1]))
    return plans
