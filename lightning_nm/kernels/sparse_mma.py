"""The layout of 2:4 weights as sparse tensor cores take them from registers, and the plain way to multiply it.

One instruction, PTX's ``mma.sp`` of shape m16n8k32, multiplies 16 outputs x 32 inputs, of which it is given the 16 that
are kept, with 8 rows of x. All its operands lie in the registers of a warp's 32 lanes; so that every lane loads its own
and nothing else, in 16 bytes at a time, they are stored in that order, tile by tile of 32 outputs x 128 inputs:

    values     [O / 32, I / 128, 4 steps, 2 halves, 32 lanes, 4]  int32: two 16-bit weights each
    positions  [O / 32, I / 128, 32 lanes, 4 steps]               int32: the positions of 16 weights, two bits each

A step is 32 inputs, a half 16 outputs. Of lane 4 g + t, PTX ISA, section "Matrix fragments for mma.sp.m16n8k32 with
.f16 and .bf16 types", wants

    word w of values      of output g + 8 (w % 2), the weights kept of inputs 4 t + 16 (w // 2) and the three behind
    word j of x           of row g of x, inputs 2 t + 8 j and the one behind
    positions             the lower 16 bits of output g, the upper ones of output g + 8, inputs 16 (t % 2) and 15 behind

Two lanes of four would do for the positions of one half: a selector says which two it is, and so lanes with t < 2 hold
those of the first half, the others those of the second.

Outputs and inputs are filled up with zeros to whole tiles.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.activation import activated

ROWS = 32
"""Outputs of a tile."""
INPUTS = 128
"""Of a tile."""
STEPS = 4
"""Instructions that it takes for a half of a tile and 8 rows of x."""
COLUMNS = 8
"""Rows of x that an instruction takes."""
LANES = 32


def tiles(outputs: int, inputs: int) -> tuple[int, int]:
    """Along outputs and inputs."""
    return -(-outputs // ROWS), -(-inputs // INPUTS)


def pack(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(values, positions) of ``rows`` ``[O, I]`` of a 16-bit dtype, whose ``mask`` keeps exactly two of every four."""
    outputs, inputs = rows.shape
    high, wide = tiles(outputs, inputs)
    at = torch.arange(2, device=rows.device).repeat(high * ROWS, wide * INPUTS // 4, 1)  # in rising order everywhere
    kept = rows.new_zeros(at.shape)
    at[:outputs, : inputs // 4] = mask.nonzero()[:, 1].view(outputs, inputs // 4, 2) % 4
    kept[:outputs, : inputs // 4] = rows.detach()[mask].view(outputs, inputs // 4, 2)

    # groups of four: [tiles, half, row + 8, g, tiles, step, inputs + 16, t, weight]
    kept = kept.view(high, 2, 2, 8, wide, STEPS, 2, 4, 2)
    values = kept.permute(0, 4, 5, 1, 3, 7, 6, 2, 8).reshape(high, wide, STEPS, 2, LANES, 8)
    bits = (at[..., 0] | at[..., 1] << 2).view(high, 2, 2, 8, wide, STEPS, 2, 4)  # of one group
    place = 16 * torch.arange(2, device=rows.device)[:, None] + 4 * torch.arange(4, device=rows.device)
    words = (bits.permute(0, 4, 3, 1, 6, 5, 2, 7) << place).sum((6, 7))  # [tiles, tiles, g, half, inputs + 16, step]
    return values.view(torch.int32), words.to(torch.int32).view(high, wide, LANES, STEPS)


def unpack(values: Tensor, positions: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The rows, of ``shape`` ``[O, I]``."""
    high, wide = values.shape[:2]
    place = 4 * torch.arange(8, device=values.device).view(2, 4)
    words = positions.long().view(high, wide, 8, 2, 2, STEPS)[..., None, None] >> place
    bits = words.permute(0, 3, 6, 2, 1, 5, 4, 7).reshape(high * ROWS, -1) & 15
    kept = values.contiguous().view(dtype).view(high, wide, STEPS, 2, 8, 4, 2, 2, 2)
    kept = kept.permute(0, 3, 7, 4, 1, 2, 6, 5, 8).reshape(*bits.shape, 2)
    rows = kept.new_zeros(*bits.shape, 4)
    rows.scatter_add_(2, torch.stack((bits & 3, bits >> 2), 2), kept)
    return rows.flatten(1)[: shape[0], : shape[1]]


def ordered(x: Tensor, columns: int) -> Tensor:
    """X ``[B, I]`` as the lanes take it: int32 ``[B / 8, I / 128, 4 steps, 32 lanes, 4]``.

    Args:
        x: of a 16-bit dtype.
        columns: B is filled up to a multiple, with whatever is there: nobody asks for their products.
    """
    batch, (_, wide) = len(x), tiles(0, x.shape[1])
    missing = (0, wide * INPUTS - x.shape[1], 0, -batch % COLUMNS)
    if any(missing):
        x = F.pad(x, missing)
    taken = x.new_empty(-(-batch // columns) * columns // COLUMNS, wide, STEPS, 8, 4, 4, 2)
    # [rows, g, tiles, step, word, t, input]
    as_it_lies = x.reshape(-1, COLUMNS, wide, STEPS, 4, 4, 2)
    taken[: len(as_it_lies)] = as_it_lies.permute(0, 2, 3, 1, 5, 4, 6)
    return taken.view(torch.int32).view(-1, wide, STEPS, LANES, 4)


def matmul(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, outputs: int, activation: str = "none"
) -> Tensor:
    """``x @ rows^T + bias`` of x ``[B, I]`` of the weight's dtype, and what is activated of it."""
    return activated(F.linear(x, unpack(values, positions, (outputs, x.shape[1]), x.dtype), bias), activation)
