"""Products with packed 1xN weights: one input in all lanes, times the N weights of its block.

Lanes are 16, or N where that is less: few lanes take as many instructions as sixteen, and pay where reading weights is
most of the work, or few are left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, reduce
from itertools import product
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.emit import F32, I16, I32, I64, LANES, Kernel, Value, number, zeros
from lightning_nm.kernels.cpu.machine import compiled
from lightning_nm.kernels.cpu.rows import (
    Rows,
    each_tile,
    held_matrix,
    held_pixels,
    matrix_rows,
    pixel_rows,
    spans,
    tile_rows,
)
from lightning_nm.kernels.cpu.stored import STORED, aligned, floats, nothing

ROWS = 8
"""At a time, at most."""
SUMS = 16
"""Vectors of sums that a kernel holds, at most; more, and what passes through finds no register."""
CHAINS = 8
"""Multiply-adds that hide each other's latency: where sums are fewer, several blocks have sums of their own."""
_VALUES, _INPUTS, _STARTS, _X, _OUT, _BIAS, _BASES, _TAPS = range(2, 10)
_BLOCKS, _INPUT_COUNT, _TAP_COUNT, _COLUMNS, _ROWS, _SPAN, _OUT_STRIDE = range(10, 17)


def supports(values: Tensor) -> bool:
    """Whether there is a kernel for blocks ``[blocks, ..., N]`` of this dtype and N."""
    n = values.shape[-1]
    return values.dtype in STORED and (n % LANES == 0 or n in (1, 2, 4, 8))


@cache
def _kernel(n: int, dtype: torch.dtype, wide: bool, rows: int, taps: bool) -> Callable[[int], None]:
    """For so many rows at a time. ``wide``: inputs are counted in 32 bits; ``taps``: there is more than one."""
    kernel = Kernel("block_matmul")
    b, stored, lanes = kernel.builder, STORED[dtype], min(n, LANES)
    vectors, vector, sums_of = n // lanes, ir.VectorType(stored, lanes), ir.VectorType(F32, lanes)
    values, inputs = kernel.address(_VALUES, stored), kernel.address(_INPUTS, I32 if wide else I16)
    starts, x = kernel.address(_STARTS, I32), kernel.address(_X)
    out, bias = kernel.address(_OUT), kernel.address(_BIAS)
    bases, shifts = kernel.address(_BASES, I64), kernel.address(_TAPS, I64)
    tap_count, columns, out_stride = (kernel.argument(at) for at in (_TAP_COUNT, _COLUMNS, _OUT_STRIDE))
    held, last = kernel.argument(_BLOCKS), b.sub(kernel.argument(_INPUT_COUNT), number(1))
    size = rows * vectors
    unrolled = 1 if taps else max(1, CHAINS // size)

    def unit(index: Value) -> None:
        column, span = b.urem(index, columns), b.udiv(index, columns)
        # whatever the tensors hold, nothing is read beyond their ends
        first, end = (
            kernel.at_most(b.zext(b.load(b.gep(starts, [b.add(column, number(i))])), I64), held) for i in (0, 1)
        )
        blocks = b.sub(end, first)
        outputs = [kernel.sum(kernel.times(column, n), number(v * lanes)) for v in range(vectors)]
        start = [kernel.load(bias, output, sums_of) for output in outputs]

        def tile(row: Value) -> None:
            own = [b.gep(x, [b.load(b.gep(bases, [b.add(row, number(r))]))]) for r in range(rows)]

            def step(place: Value, seen: Value, sums: list[Value]) -> list[Value]:
                at = kernel.times(place, n)
                weights = [
                    floats(kernel, kernel.load_aligned(values, b.add(at, number(v * lanes)), vector))
                    for v in range(vectors)
                ]
                inputs = [kernel.everywhere(b.load(b.gep(o, [seen])), lanes) for o in own]
                return [kernel.fma(w, i, s) for (i, w), s in zip(product(inputs, weights), sums)]

            def block(which: Value, sums: list[Value]) -> list[Value]:
                channel = kernel.at_most(b.zext(b.load(b.gep(inputs, [which])), I64), last)
                if not taps:
                    return step(which, channel, sums)
                place = kernel.times(which, tap_count)

                def tap(t: Value, sums: list[Value]) -> list[Value]:
                    return step(b.add(place, t), b.add(channel, b.load(b.gep(shifts, [t]))), sums)

                return kernel.loop(tap_count, sums, tap)

            def several(at: Value, sums: list[Value]) -> list[Value]:
                begin = b.add(first, kernel.times(at, unrolled))
                return [
                    s for u in range(unrolled) for s in block(b.add(begin, number(u)), sums[u * size : (u + 1) * size])
                ]

            whole = b.sdiv(blocks, number(unrolled))
            parts = kernel.loop(whole, start * rows + [zeros(lanes)] * (size * (unrolled - 1)), several)
            sums = [reduce(b.fadd, parts[i::size]) for i in range(size)]
            if unrolled > 1:
                done = b.add(first, kernel.times(whole, unrolled))
                sums = kernel.loop(b.sub(end, done), sums, lambda at, sums: block(b.add(done, at), sums))
            for r in range(rows):
                y = kernel.times(b.add(row, number(r)), out_stride)
                for v in range(vectors):
                    kernel.store(sums[r * vectors + v], out, b.add(y, outputs[v]))

        each_tile(kernel, span, rows, kernel.argument(_SPAN), kernel.argument(_ROWS), tile)

    return compiled(kernel.units(unit), kernel.name)


def matmul(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ W^T + bias`` of x ``[B, I]``, multiplied as float32.

    Args:
        x: of any floating-point dtype, which the result has.
        values: ``[blocks, N]``.
        inputs: ``[blocks]``, int16 or int32.
        starts: ``[O / N + 1]``, int32.
        bias: ``[O]``.
    """
    rows = matrix_rows(*x.shape)
    out = _multiply(held_matrix(x, rows), rows, 1, x.shape[1], values, inputs, starts, bias)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def fits(starts: Tensor, convolution: Convolution) -> bool:
    """Whether the groups of a convolution are whole rows of blocks."""
    return (starts.shape[0] - 1) % convolution.groups == 0


def convolution(
    x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None, convolution: Convolution
) -> Tensor:
    """Of x ``[B, C, *sizes]``, multiplied as float32; the result ``[B, O, *sizes]`` has its channels last.

    Args:
        values: ``[blocks, T, N]``.
    """
    rows, groups = pixel_rows(x.shape, convolution, x.shape[1]), convolution.groups
    held = held_pixels(x, rows, convolution)
    out = _multiply(held, rows, groups, x.shape[1] // groups, values, inputs, starts, bias).movedim(-1, 1)
    return out if out.dtype == x.dtype else out.to(x.dtype)


class _Plan(NamedTuple):
    kernel: Callable[[int], None]
    units: int
    shifts: Tensor
    sizes: tuple[int, ...]
    """The kernel's arguments from `_TAP_COUNT` on."""


@lru_cache(256)
def _plan(
    n: int, dtype: torch.dtype, wide: bool, total: int, taps: tuple[int, ...], columns: int, outputs: int
) -> _Plan:
    """For so many rows, and rows of blocks."""
    rows = tile_rows(total, max(1, min(ROWS, SUMS * LANES // max(n, LANES))))
    share = spans(total, rows, columns)
    kernel = _kernel(n, dtype, wide, rows, len(taps) > 1)
    shifts = torch.tensor(taps, device="cpu")
    return _Plan(kernel, columns * share.spans, shifts, (len(taps), columns, total, share.size, outputs))


def _multiply(
    x: Tensor,
    rows: Rows,
    parts: int,
    width: int,
    values: Tensor,
    inputs: Tensor,
    starts: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """``[*rows.shape, O]``; each of ``parts`` parts of the outputs sees a part of the inputs, so wide."""
    columns, n = (starts.shape[0] - 1) // parts, values.shape[-1]
    outputs = columns * parts * n
    values, inputs, starts = aligned(values), aligned(inputs), aligned(starts)
    start = nothing(outputs) if bias is None else bias.float().contiguous()
    out = x.new_empty(*rows.shape, outputs)
    if not width or not out.numel():  # no input to read, or nothing to write
        return out.copy_(start)
    total = rows.bases.shape[0]
    plan = _plan(n, values.dtype, inputs.dtype == torch.int32, total, rows.taps, columns, outputs)
    v, i, s, first, y, z = (tensor.data_ptr() for tensor in (values, inputs, starts, x, out, start))
    tables = rows.bases.data_ptr(), plan.shifts.data_ptr(), values.shape[0], width
    for part in range(parts):
        own = part * columns * n * 4
        addresses = (v, i, s + part * columns * 4, first + part * width * 4, y + own, z + own)
        threads.run(plan.kernel, plan.units, (*addresses, *tables, *plan.sizes))
    return out
