"""x @ W^T for few rows of x: every weight gathers its own input.

Weights are read once, in order, and dominate: x is small and stays in the first cache. Integer instructions per dense
weight decide whether the memory is kept busy: at batch 1 in 2:4 at most 3.2 (tests/kernels/triton/test_gathered_nm.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.gathered_nm import LARGEST_BATCH, Layout
from lightning_nm.kernels.triton.activation import activated
from lightning_nm.kernels.triton.finish import finish

ROWS = 4
WARPS = 4
_PROGRAMS = 512
"""That keep a card busy: where there are fewer, several share the inputs of a row."""


@triton.jit
def kernel(
    x_ptr,  # [BATCH, INPUTS], 16 bits, or float32
    positions_ptr,  # [outputs, chunks, WORDS], int32
    values_ptr,  # [outputs, chunks, PAIRS, WORDS], int32
    bias_ptr,  # [outputs], or anything without HAS_BIAS
    out_ptr,  # [programs of a row, BATCH, outputs], 16 bits, or float32
    outputs,
    chunks,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    GROUPS: tl.constexpr,
    WORDS: tl.constexpr,
    BATCH: tl.constexpr,
    INPUTS: tl.constexpr,
    BF16: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    split = tl.program_id(1)
    word = tl.arange(0, WORDS)[None, :]  # [1, WORDS]
    PAIRS: tl.constexpr = GROUPS * N // 2
    there = row < outputs
    # everything has the shape [ROWS, WORDS] and 32 bits: other shapes would cost a barrier at each weight
    sums = ()
    for _ in tl.static_range(BATCH):
        sums = sums + (tl.zeros([ROWS, WORDS], tl.float32),)
    for chunk in range(split, chunks, tl.num_programs(1)):
        place = row * chunks + chunk  # [ROWS, 1]
        # one word for a lane, like one input: triton before 3.9 would exchange wider loads through shared memory
        words = tl.max_contiguous(positions_ptr + place * WORDS + word, [1, 1])
        positions = tl.load(words, mask=there, other=0)  # [ROWS, WORDS]
        x = x_ptr + chunk * (WORDS * GROUPS * M) + word * M  # [1, WORDS]
        for pair in tl.static_range(PAIRS):
            words = tl.max_contiguous(values_ptr + (place * PAIRS + pair) * WORDS + word, [1, 1])
            values = tl.load(words, mask=there, other=0)  # [ROWS, WORDS]
            for half in tl.static_range(2):
                at = (positions >> ((2 * pair + half) * BITS)) & ((1 << BITS) - 1)
                if (1 << BITS) > M:  # a position of no weight, in a corrupt layout
                    at = tl.minimum(at, M - 1)
                weight = _float(values, half, BF16)
                chosen = x + at  # [ROWS, WORDS]
                added = ()
                for b in tl.static_range(BATCH):
                    # a constant last: it is part of the load
                    seen = tl.load(chosen + ((2 * pair + half) // N * WORDS * M + b * INPUTS))
                    added = added + (sums[b] + weight * seen.to(tl.float32),)
                sums = added
    for b in tl.static_range(BATCH):
        total = tl.sum(sums[b], 1, keep_dims=True)  # [ROWS, 1]
        if HAS_BIAS:
            total += tl.load(bias_ptr + row, mask=there, other=0.0).to(tl.float32)
        total = activated(total, ACTIVATION)
        tl.store(out_ptr + (split * BATCH + b) * outputs + row, total.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def _float(pair, HALF: tl.constexpr, BF16: tl.constexpr):
    """One of two 16-bit numbers in a 32-bit word."""
    if BF16:  # the upper half of a float32
        return ((pair << 16) if HALF == 0 else (pair & -65536)).to(tl.float32, bitcast=True)
    return ((pair >> (16 * HALF)) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


def splits(outputs: int, chunks: int) -> int:
    """Programs that share a row's inputs."""
    return max(1, min(chunks, _PROGRAMS * ROWS // max(1, outputs)))


def matmul(
    x: Tensor, positions: Tensor, values: Tensor, bias: Tensor | None, layout: Layout, activation: str = "none"
) -> Tensor:
    """`lightning_nm.kernels.gathered_nm.matmul`, summed in float32, 8 rows of x at a time."""
    if len(x) > LARGEST_BATCH:  # a kernel of more would take minutes to compile, and find no registers
        pieces = torch.split(x, LARGEST_BATCH)
        return torch.cat([matmul(piece, positions, values, bias, layout, activation) for piece in pieces])
    (batch, inputs), outputs = x.shape, len(values)
    x = (F.pad(x, (0, layout.filled - inputs)) if layout.filled > inputs else x).contiguous()
    dtype, parts = x.dtype, splits(outputs, layout.chunks)
    if batch > 1:  # else every weight would widen every row's input
        x = x.float()
    out = torch.empty(parts, batch, outputs, dtype=dtype if parts == 1 else torch.float32, device=x.device)
    fused = bias if parts == 1 else None
    kernel[(triton.cdiv(outputs, ROWS), parts)](
        x,
        positions,
        values,
        values if fused is None else fused,
        out,
        outputs,
        layout.chunks,
        N=layout.n,
        M=layout.m,
        BITS=layout.bits,
        GROUPS=layout.groups,
        WORDS=layout.words,
        BATCH=batch,
        INPUTS=layout.filled,
        BF16=dtype == torch.bfloat16,
        ROWS=ROWS,
        HAS_BIAS=fused is not None,
        ACTIVATION=activation if parts == 1 else "none",
        num_warps=WARPS,
    )
    return out[0] if parts == 1 else finish(out, bias, outputs, dtype, activation)
