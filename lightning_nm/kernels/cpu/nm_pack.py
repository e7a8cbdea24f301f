"""`lightning_nm.kernels.packed_nm.pack`, compiled by numba: one pass over the weight's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_nm.kernels.cpu.compiled import compiled
from lightning_nm.kernels.packed_nm import LANES, Layout

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@compiled
def _pack(rows, magnitude, n, m, window, per_word, values, positions):  # type: ignore[no-untyped-def]
    """Bits of ``rows`` [O, I] into values [groups, chunks, weights, 16] and positions [groups, chunks, words, 16].

    Returns:
        -1, or the first group of M that holds more than N weights, counted through all rows.
    """
    outputs, inputs = rows.shape
    weights, width = values.shape[2], 32 // per_word
    for output in range(values.shape[0] * 16):
        block, lane = output // 16, output % 16
        for group in range(values.shape[1] * weights // n):
            first = group * m
            there = output < outputs and first < inputs
            kept = zeros = 0
            if there:
                for j in range(first, first + m):
                    if rows[output, j] & magnitude:
                        kept += 1
                    elif rows[output, j]:
                        zeros += 1
                if kept > n:
                    return output * (inputs // m) + group
            # zeros that are -0 go first where there is room, then any others
            zeros = min(zeros, n - kept)
            others = n - kept - zeros
            slot = group * n
            for j in range(m):
                bits = rows[output, first + j] if there else rows.dtype.type(0)
                if bits & magnitude:
                    pass
                elif bits and zeros:
                    zeros -= 1
                elif not bits and others:
                    others -= 1
                else:
                    continue
                chunk, weight = slot // weights, slot % weights
                values[block, chunk, weight, lane] = bits
                positions[block, chunk, weight // per_word, lane] |= np.uint32(
                    (first + j) % window << width * (weight % per_word)
                )
                slot += 1
    return -1


def pack(rows: Tensor, n: int, layout: Layout) -> tuple[Tensor, Tensor] | int:
    """(values, positions), or the group that holds more than N weights: see `lightning_nm.kernels.nm_pack`."""
    outputs = len(rows)
    groups, integers = -(-outputs // LANES), _INTEGERS[rows.element_size()]
    values = rows.new_zeros(groups, layout.chunks, layout.weights, LANES)
    positions = torch.zeros(groups, layout.chunks, layout.words, LANES, dtype=torch.int32)
    magnitude: Any = np.array(torch.iinfo(integers).max, dtype=str(integers).removeprefix("torch."))[()]
    arrays = [tensor.view(integers).numpy() for tensor in (rows.contiguous(), values)]
    wrong = _pack(
        arrays[0], magnitude, n, layout.group, layout.window, layout.per_word, arrays[1], positions.numpy().view("u4")
    )
    return (values, positions) if wrong < 0 else int(wrong)
