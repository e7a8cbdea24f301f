"""What one instruction of a sparse tensor core does with the registers of a warp, after the text of NVIDIA's PTX ISA.

"Matrix fragments for sparse mma.m16n8k32 with .f16 and .bf16 types", and "Sparse matrix storage". Nothing here is taken
from the package.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Sums = NDArray[np.float32]
_LANE = np.arange(32)[:, None]
_GROUP, _THREAD = _LANE // 4, _LANE % 4  # groupID, threadID_in_group
_I = np.arange(8)[None, :]  # of the elements of a fragment, of which the first lies in the lower half of a register


def mma_sp(values: Words, x: Words, sums: Sums, positions: Words, selector: int, kind: str) -> Sums:
    """D ``[32, 4]`` of one warp.

    Args:
        values: A ``[32, 4]``, of which half is stored.
        x: B ``[32, 4]``.
        sums: C ``[32, 4]``.
        positions: ``[32]``, the metadata.
        selector: which pair of the four lanes of a group holds the metadata.
        kind: "bf16" or "f16".
    """
    row = np.where((_I < 2) | ((_I >= 4) & (_I < 6)), _GROUP, _GROUP + 8)
    first = np.where(_I < 4, _THREAD * 4, _THREAD * 4 + 16)
    # T(2 s): columns 0..15, T(2 s + 1): columns 16..31; bits 0..15 of row groupID, bits 16..31 of row groupID + 8
    holder = _GROUP * 4 + 2 * selector + first // 16
    pair = positions[holder].astype(np.int64) >> (16 * (row >= 8) + 4 * (first % 16 // 4)) & 15
    assert (pair & 3 < pair >> 2).all(), "ordered_metadata wants rising positions"
    column = first + (pair >> 2 * (_I % 2) & 3)
    a = np.full((16, 32), np.nan)
    a[row, first] = a[row, first + 1] = a[row, first + 2] = a[row, first + 3] = 0.0
    a[row, column] = numbers(values, kind)
    b = np.full((32, 8), np.nan)
    b[_THREAD * 2 + _I % 2 + 8 * (_I // 2), np.broadcast_to(_GROUP, (32, 8))] = numbers(x, kind)
    i = _I[:, :4]
    d_row, d_column = _GROUP + 8 * (i // 2), _THREAD * 2 + i % 2
    assert not np.isnan(a).any()
    return (sums + (a @ b)[d_row, d_column]).astype(np.float32)


def numbers(words: Words, kind: str) -> NDArray[np.float64]:
    """``[32, 8]``: of each register the lower half, then the upper one."""
    halves = np.ascontiguousarray(words).view(np.uint16).reshape(len(words), -1)
    if kind == "f16":
        return halves.view(np.float16).astype(np.float64)
    return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
