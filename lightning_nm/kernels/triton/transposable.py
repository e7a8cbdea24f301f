"""Exact 2:4 masks of every row and every column of 4 x 4 tiles: those of `lightning_nm.kernels.transposable`.

A thread takes a tile. Scores are the reference's whole numbers, so their sums are exact in any order. What a row may
keep is worth its scores and a fraction that says where it stands in the table of masks, less than any difference of
scores: one maximum finds the largest sum and, among equal ones, the first mask of the table.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.transposable.layout import units
from lightning_nm.kernels.transposable.table import row_choices

WARPS = 4
BLOCK = 32 * WARPS


_COLUMNS = [sum(1 << column for column in range(4) if row[column]) for row in row_choices(2, 4).tolist()]
_CHOICES = tl.constexpr(sum(columns << (4 * choice) for choice, columns in enumerate(_COLUMNS)))
"""The columns that each of the six choices for a row keeps: one hexadecimal digit a choice."""
_NUMBERS = tl.constexpr(sum(choice << (4 * columns) for choice, columns in enumerate(_COLUMNS)))
"""Which choice keeps these columns: `_CHOICES` backwards."""
_UNITS = tl.constexpr(units(4))
_HALF = tl.constexpr(2.0**52)
"""Added and taken away again it leaves the nearest whole number, of two the even one."""
_LARGEST = tl.constexpr(torch.finfo(torch.float64).max)


@triton.jit
def kernel(
    weight_ptr,  # [outputs, inputs, taps], of any strides
    mask_ptr,  # uint8 [outputs, inputs, taps]: 1 where kept
    tiles,
    inputs,
    taps,
    stride_output,
    stride_input,
    stride_tap,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = at < tiles
    tap = at % taps
    column = at // taps % (inputs // 4) * 4
    row = at // taps // (inputs // 4) * 4
    first = weight_ptr + row * stride_output + column * stride_input + tap * stride_tap
    sizes = ()
    largest = tl.zeros([BLOCK], tl.float64)
    for i in tl.static_range(16):
        size = tl.abs(
            tl.load(first + i // 4 * stride_output + i % 4 * stride_input, mask=there, other=0.0).to(tl.float64)
        )
        size = tl.minimum(tl.where(size == size, size, 0.0), _LARGEST)
        largest = tl.maximum(largest, size)
        sizes = sizes + (size,)
    largest = tl.where(largest > 0.0, largest, 1.0)
    scores = ()
    for i in tl.static_range(16):
        # 512: room for three places of three bits, which settle the fourth row
        scores = scores + ((sizes[i] / largest * _UNITS + _HALF - _HALF) * 512.0,)
    worth = _worth(scores, 0, 64) + _worth(scores, 4, 8) + _worth(scores, 8, 1) + _worth(scores, 12, 0)
    best = tl.zeros([BLOCK], tl.float64)
    for x in tl.static_range(6):
        for y in tl.static_range(6):
            below = tl.zeros([BLOCK], tl.float64)
            for z in tl.static_range(6):
                if _fits(x, y, z):
                    below = tl.maximum(below, worth[12 + z] + worth[18 + _last(x, y, z)])
            best = tl.maximum(best, worth[x] + worth[6 + y] + below)
    places = best.to(tl.int64).to(tl.int32)
    first_kept = (_CHOICES >> (5 - (places >> 6 & 7)) * 4) & 15
    second_kept = (_CHOICES >> (5 - (places >> 3 & 7)) * 4) & 15
    third_kept = (_CHOICES >> (5 - (places & 7)) * 4) & 15
    kept = (first_kept, second_kept, third_kept, first_kept ^ second_kept ^ third_kept)
    for i in tl.static_range(16):
        place = ((row + i // 4) * inputs + column + i % 4) * taps + tap
        tl.store(mask_ptr + place, ((kept[i // 4] >> i % 4) & 1).to(tl.uint8), mask=there)


@triton.jit
def _worth(scores, FIRST: tl.constexpr, PLACE: tl.constexpr):
    """Of each choice for the row whose scores begin at FIRST, in the order of the table."""
    pairs = ()
    for a in tl.static_range(4):
        for b in tl.static_range(a + 1, 4):
            pairs = pairs + (scores[FIRST + a] + scores[FIRST + b],)
    worth = ()
    for choice in tl.static_range(6):
        worth = worth + (pairs[choice] + (5 - choice) * PLACE,)
    return worth


@triton.constexpr_function
def _kept(choice):
    """The columns that a choice for a row keeps, as bits."""
    return (_CHOICES >> (4 * choice)) & 15


@triton.constexpr_function
def _fits(x, y, z):
    """Whether a fourth row goes with these choices for three: each column is kept once or twice until then."""
    return (_kept(x) & _kept(y) & _kept(z)) == 0 and (_kept(x) | _kept(y) | _kept(z)) == 15


@triton.constexpr_function
def _last(x, y, z):
    """The choice for the fourth row: the columns that are kept once."""
    return (_NUMBERS >> (4 * (_kept(x) ^ _kept(y) ^ _kept(z)))) & 15


def mask_2_4(weight: Tensor, inputs: int, outputs: int) -> Tensor:
    """`lightning_nm.kernels.transposable_mask` for 2:4, exact."""
    rows = weight.detach().movedim((outputs, inputs), (0, 1))
    taps = rows.shape[2:]
    rows = rows.flatten(2) if taps else rows.unsqueeze(2)
    mask = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    if tiles := rows.numel() // 16:
        kernel[(triton.cdiv(tiles, BLOCK),)](
            rows,
            mask.view(torch.uint8),
            tiles,
            rows.shape[1],
            rows.shape[2],
            *rows.stride(),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return mask.view(*rows.shape[:2], *taps).movedim((0, 1), (outputs, inputs)).contiguous()
