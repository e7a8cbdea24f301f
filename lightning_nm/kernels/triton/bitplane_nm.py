"""x @ W^T on tensor cores, the weight decoded in registers: one logical operation for 32 groups.

The product does the dense multiplications, but reads packed bytes: it pays where memory is the limit, up to some 64
rows of x. Integer instructions per dense weight: at most 1.8 for 1:4, 2.6 for 2:4
(tests/kernels/triton/test_bitplane_nm.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.bitplane_nm import GROUPS, ROWS, ordered, spans_at_once
from lightning_nm.kernels.triton.activation import activated
from lightning_nm.kernels.triton.finish import finish

WARPS = 4
STAGES = 2
_PROGRAMS = 264
"""That keep a card busy: where there are fewer, several share the inputs of their outputs."""


@triton.jit
def kernel(
    x_ptr,  # [batch and more, spans * 32 M], 16 bits, inputs in the kernel's order
    values_ptr,  # [outputs and more, spans, N, 16], int32
    planes_ptr,  # [outputs and more, spans, N, BITS], int32
    bias_ptr,  # [outputs], or anything without HAS_BIAS
    out_ptr,  # [programs of a tile, batch, outputs], 16 bits, or float32
    outputs,
    batch,
    spans,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPANS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    split = tl.program_id(2)
    FILLED: tl.constexpr = 32 * M
    inside = tl.arange(0, SPANS * FILLED)  # [SPANS * FILLED]
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(split * SPANS, spans, tl.num_programs(2) * SPANS):
        place = row[:, None] * spans + first + tl.arange(0, SPANS)[None, :]  # [ROWS, SPANS]
        x = tl.load(x_ptr + column[None, :] * (spans * FILLED) + (first * FILLED + inside)[:, None])
        sums = multiplied(sums, values_ptr, planes_ptr, place, x, N, M, BITS, INTERPRETED)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + row, mask=row < outputs, other=0.0)[:, None].to(tl.float32)
    sums = activated(sums, ACTIVATION)
    there = (row < outputs)[:, None] & (column < batch)[None, :]
    place = (split * batch + column[None, :]).to(tl.int64) * outputs + row[:, None]
    tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def multiplied(
    sums,  # [ROWS, COLUMNS]
    values_ptr,
    planes_ptr,
    place,  # [ROWS, SPANS]: which span of which output
    x,  # [SPANS * 32 M, COLUMNS]
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """``sums`` and the product of some spans."""
    words = _joined(_decoded(values_ptr, planes_ptr, place, N, M, BITS), M, BITS)  # [ROWS, SPANS, 16, 2, 2, ...]
    halves = tl.join(words.to(tl.int16), (words >> 16).to(tl.int16))
    weights = tl.reshape(halves, [sums.shape[0], x.shape[0]]).to(x.dtype, bitcast=True)
    if INTERPRETED:  # the interpreter multiplies bfloat16 wrongly
        sums += tl.dot(weights.to(tl.float32), x.to(tl.float32))
    else:
        sums = tl.dot(weights, x, sums)
    return sums


@triton.jit
def _decoded(values_ptr, planes_ptr, place, N: tl.constexpr, M: tl.constexpr, BITS: tl.constexpr):
    """For each position the weights that stand there, zeros elsewhere: M x [ROWS, SPANS, 16]."""
    q = tl.arange(0, 16)[None, None, :]
    dense = ()
    for n in tl.static_range(N):
        place_n = place * N + n  # [ROWS, SPANS]
        values = tl.load(values_ptr + (place_n * 16)[:, :, None] + q)
        found = (values,)
        for b in tl.static_range(BITS):
            # highest bit first; of the two groups of a word: all ones where the bit of a group is set
            plane = tl.load(planes_ptr + place_n * BITS + (BITS - 1 - b))  # [ROWS, SPANS]
            bit = ((plane[:, :, None] >> q) & 0x00010001) * 0xFFFF  # [ROWS, SPANS, 16]
            split = ()
            for i in tl.static_range(1 << b):
                split = split + (found[i] & ~bit, found[i] & bit)
            found = split
        if n == 0:
            dense = found
        else:
            # the first of two weights is never at the last position, nor the second one at the first
            merged = (dense[0],)
            for position in tl.static_range(1, M - 1):
                merged = merged + (dense[position] | found[position],)
            dense = merged + (found[M - 1],)
    return dense


@triton.jit
def _joined(parts, M: tl.constexpr, BITS: tl.constexpr):
    """Side by side in new last dimensions, the highest bit of the position first."""
    for b in tl.static_range(BITS):
        joined = ()
        for i in tl.static_range(M >> (b + 1)):
            joined = joined + (tl.join(parts[i], parts[i + (M >> (b + 1))]),)
        parts = joined
    return parts[0]


def parts(steps: int, programs: int) -> int:
    """Programs that share the inputs of a tile, where there are so many tiles."""
    return max(1, min(steps, -(-_PROGRAMS // programs)))


def matmul(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    activation: str = "none",
) -> Tensor:
    """`lightning_nm.kernels.bitplane_nm.matmul`, summed in float32."""
    batch, (filled, count, n, _) = len(x), values.shape
    columns = max(16, min(64, 1 << (batch - 1).bit_length()))
    rows = -(-batch // columns) * columns
    taken = torch.empty(rows, count * GROUPS * m, dtype=x.dtype, device=x.device)
    taken[:batch] = ordered(x, m)  # the other rows stay what they are: nobody asks for their products
    step = spans_at_once(m)
    shared = parts(count // step, filled // ROWS * rows // columns)
    out = torch.empty(shared, batch, outputs, dtype=x.dtype if shared == 1 else torch.float32, device=x.device)
    fused = bias if shared == 1 else None
    kernel[(filled // ROWS, rows // columns, shared)](
        taken,
        values,
        planes,
        values if fused is None else fused,
        out,
        outputs,
        batch,
        count,
        N=n,
        M=m,
        BITS=planes.shape[3],
        ROWS=ROWS,
        COLUMNS=columns,
        SPANS=step,
        HAS_BIAS=fused is not None,
        ACTIVATION=activation if shared == 1 else "none",
        INTERPRETED=not isinstance(kernel, triton.JITFunction),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return out[0] if shared == 1 else finish(out, bias, outputs, x.dtype, activation)
