"""x @ W^T where blocks of outputs share their inputs: dense tensor-core products of the inputs that are kept.

A block gathers its inputs as rows of x^T, each a contiguous run of the batch, and skips the arithmetic of the others at
any batch. A tile of x^T serves the outputs of one block only, so blocks of 64 are bound by the second cache to some 45%
of the tensor cores' rate, larger ones to more (predicted for an H200, not measured).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.triton.activation import activated
from lightning_nm.kernels.triton.finish import finish
from lightning_nm.kernels.vectorwise_nm import STEP

_PROGRAMS = 264
"""That keep a card busy: where there are fewer, several share the inputs of their outputs."""


@triton.jit
def kernel(
    x_ptr,  # [inputs, columns], 16 bits
    values_ptr,  # [outputs and more, length], 16 bits
    inputs_ptr,  # [blocks, length], int32
    bias_ptr,  # [outputs], or anything without HAS_BIAS
    out_ptr,  # [programs of a tile, batch, outputs], 16 bits, or float32
    outputs,
    batch,
    columns,
    length,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    block = tl.program_id(0)  # neighbours share the columns of x, which stay in the second cache
    row = block * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    split = tl.program_id(2)
    inside = tl.arange(0, STEP)  # [STEP]
    # Hopper's tensor cores take 64 rows at least: blocks of fewer are multiplied the other way round
    TURNED: tl.constexpr = ROWS < 64 and COLUMNS >= 64
    sums = tl.zeros([COLUMNS, ROWS], tl.float32) if TURNED else tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(split * STEP, length, tl.num_programs(2) * STEP):
        taken = tl.load(inputs_ptr + block * length + first + inside)  # [STEP]
        x = tl.load(x_ptr + taken[:, None].to(tl.int64) * columns + column[None, :])  # [STEP, COLUMNS]
        weights = tl.load(values_ptr + row[:, None].to(tl.int64) * length + first + inside[None, :])  # [ROWS, STEP]
        if INTERPRETED:  # the interpreter multiplies bfloat16 wrongly
            x, weights = x.to(tl.float32), weights.to(tl.float32)
        sums = tl.dot(tl.trans(x), tl.trans(weights), sums) if TURNED else tl.dot(weights, x, sums)
    if TURNED:
        sums = tl.trans(sums)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + row, mask=row < outputs, other=0.0)[:, None].to(tl.float32)
    sums = activated(sums, ACTIVATION)
    there = (row < outputs)[:, None] & (column < batch)[None, :]
    place = (split * batch + column[None, :]).to(tl.int64) * outputs + row[:, None]
    tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=there)


class Tile(NamedTuple):
    """What one program does, and how: chosen by machine code, not yet by measurement."""

    columns: int
    """Of x^T."""
    warps: int
    stages: int

    @staticmethod
    def of(rows: int, batch: int) -> Tile:
        """For blocks of ``rows`` outputs."""
        columns = max(16, min(128 if rows < 64 else 256, 1 << (batch - 1).bit_length()))
        # where registers let one program on a multiprocessor, it may use the memory of two (indices take two stages)
        return Tile(columns, 8 if rows * columns > 64 * 128 else 4, 5 if rows * columns > 64 * 256 else 3)


def matmul(
    x: Tensor, values: Tensor, inputs: Tensor, bias: Tensor | None, outputs: int, activation: str = "none"
) -> Tensor:
    """`lightning_nm.kernels.vectorwise_nm.matmul`, summed in float32."""
    batch, (filled, length) = len(x), values.shape
    rows = filled // len(inputs)
    wide, warps, stages = Tile.of(rows, batch)
    columns = -(-batch // wide) * wide
    turned = torch.empty(x.shape[1], columns, dtype=x.dtype, device=x.device)
    turned[:, :batch] = x.T  # the other columns stay what they are: nobody asks for their products
    programs = len(inputs) * columns // wide
    parts = max(1, min(length // STEP, _PROGRAMS // programs))
    out = torch.empty(parts, batch, outputs, dtype=x.dtype if parts == 1 else torch.float32, device=x.device)
    fused = bias if parts == 1 else None
    kernel[(len(inputs), columns // wide, parts)](
        turned,
        values,
        inputs,
        values if fused is None else fused,
        out,
        outputs,
        batch,
        columns,
        length,
        ROWS=rows,
        COLUMNS=wide,
        STEP=STEP,
        HAS_BIAS=fused is not None,
        ACTIVATION=activation if parts == 1 else "none",
        INTERPRETED=not isinstance(kernel, triton.JITFunction),
        num_warps=warps,
        num_stages=stages,
    )
    return out[0] if parts == 1 else finish(out, bias, outputs, x.dtype, activation)
