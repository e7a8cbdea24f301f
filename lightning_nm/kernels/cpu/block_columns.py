"""Packed 1xN weights of any N times columns: a block's input is loaded once, and met by the N weights one by one.

See `lightning_nm.kernels.cpu.columns`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.columns import Columns, columns, lay_out, registers, store, tile, without_inputs
from lightning_nm.kernels.cpu.emit import F32, I16, I32, I64, LANES, Kernel, Value, number
from lightning_nm.kernels.cpu.machine import compiled
from lightning_nm.kernels.cpu.stored import STORED, aligned

AHEAD = 32
"""How many weights of an output before they are met they are asked for."""
UNITS = 8
"""For each thread, at least, so that all end together."""
_VALUES, _INPUTS, _STARTS, _X, _OUT, _BIAS, _TAPS, _BLOCKS = range(2, 10)
_WIDTH, _PLANE, _ROWS, _ROWS_AT_ONCE, _GROUP_ROWS, _TILES, _PIXELS, _COLUMNS = range(10, 18)


@cache
def _kernel(n: int, taps: int, dtype: torch.dtype, wide: bool, outputs: int, vectors: int) -> Callable[[int], None]:
    """For so many outputs and vectors at a time; ``wide``: inputs are counted in 32 bits."""
    kernel = Kernel("block_columns")
    b, stored = kernel.builder, STORED[dtype]
    values, inputs = kernel.address(_VALUES, stored), kernel.address(_INPUTS, I32 if wide else I16)
    starts, x, out, bias = kernel.address(_STARTS, I32), kernel.address(_X), kernel.address(_OUT), kernel.address(_BIAS)
    shifts = kernel.address(_TAPS, I64)
    width, plane, held = kernel.argument(_WIDTH), kernel.argument(_PLANE), kernel.argument(_BLOCKS)
    rows, rows_at_once, group_rows = (kernel.argument(i) for i in (_ROWS, _ROWS_AT_ONCE, _GROUP_ROWS))
    tiles, pixels = kernel.argument(_TILES), kernel.argument(_PIXELS)
    last = b.sub(width, number(1))

    def unit(index: Value) -> None:
        part = b.udiv(index, tiles)
        found = tile(kernel, _COLUMNS, b.sub(index, b.mul(part, tiles)), vectors)
        begin = b.mul(part, rows_at_once)
        end = kernel.at_most(b.add(begin, rows_at_once), rows)

        def row(at: Value, _: list[Value]) -> list[Value]:
            which = b.add(begin, at)
            # whatever the tensors hold, nothing is read beyond their ends
            first, stop = (
                kernel.at_most(b.zext(b.load(b.gep(starts, [b.add(which, number(i))])), I64), held) for i in (0, 1)
            )
            group = b.mul(b.udiv(which, group_rows), kernel.times(width, plane))
            columns_of = [b.add(group, start) for start in found.inputs]

            def some(index: Value, _: list[Value]) -> list[Value]:
                begun = kernel.times(index, outputs)
                output = b.add(kernel.times(which, n), begun)
                start = [b.load(b.gep(bias, [b.add(output, number(o))])) for o in range(outputs)]

                def weights(at: Value, sums: list[Value]) -> list[Value]:
                    # blocks and their taps in one loop: a loop of few taps would end with a branch that surprises
                    which = b.udiv(at, number(taps))
                    shift = b.load(b.gep(shifts, [b.sub(at, kernel.times(which, taps))]))
                    column = kernel.at_most(b.zext(b.load(b.gep(inputs, [which])), I64), last)
                    place = b.add(b.mul(column, plane), shift)
                    seen = [kernel.load(x, b.add(column, place)) for column in columns_of]
                    weight = b.add(kernel.times(at, n), begun)
                    kernel.prefetch(values, b.add(weight, number(AHEAD * n)))
                    added = []
                    for o in range(outputs):
                        value = kernel.everywhere(_float(kernel, b.load(b.gep(values, [b.add(weight, number(o))]))))
                        added += [kernel.fma(value, s, sums[o * vectors + v]) for v, s in enumerate(seen)]
                    return added

                begun_sums = [kernel.everywhere(s) for s in start for _ in range(vectors)]
                done = kernel.times(first, taps)
                sums = kernel.loop(
                    b.sub(kernel.times(stop, taps), done), begun_sums, lambda at, sums: weights(b.add(done, at), sums)
                )
                for o in range(outputs):
                    y = b.mul(b.add(output, number(o)), pixels)
                    store(kernel, found, sums[o * vectors : (o + 1) * vectors], out, y)
                return []

            kernel.loop(number(n // outputs), [], some)
            return []

        kernel.loop(b.sub(end, begin), [], row)

    return compiled(kernel.units(unit), kernel.name)


def _float(kernel: Kernel, raw: Value) -> Value:
    """One stored weight as a float."""
    b = kernel.builder
    if raw.type == I16:  # bfloat16 is the upper half of a float
        return b.bitcast(b.shl(b.zext(raw, I32), I32(16)), F32)
    return raw if raw.type == F32 else b.fpext(raw, F32)


def supports(values: Tensor, outputs: int, groups: int) -> bool:
    """Whether there is a kernel for values ``[blocks, T, N]``: no block may lie in two groups of a convolution."""
    return values.dtype in STORED and outputs // groups % values.shape[-1] == 0


def _tile(n: int, vectors: int) -> tuple[int, int]:
    """(outputs, vectors) at a time: of least work, counting what lies behind the last vector."""
    # for sums and columns; with more of them LLVM moves some in and out of memory
    room = registers() * 7 // 8

    def outputs(size: int) -> int:
        return max(o for o in range(1, room // size) if n % o == 0)

    def work(size: int) -> float:
        # multiply-adds, or the loads of x (two halves each: they lie across lines); and what each pass costs besides
        each = max(outputs(size), 2.5) + 0.5
        return -(-vectors // size) * (n // outputs(size) * (each * size + 1) + 4)

    size = min(range(1, min(8, room // 2) + 1), key=work)
    return outputs(size), size


class _Plan(NamedTuple):
    """All that a call needs and that only sizes tell."""

    kernel: Callable[[int], None]
    columns: Columns
    units: int
    numbers: tuple[int, ...]


@lru_cache(1024)
def _plan(
    shape: torch.Size, convolution: Convolution, n: int, rows: int, dtype: torch.dtype, wide: bool, team: int
) -> _Plan:
    """For so many threads."""
    found = columns(tuple(shape[2:]), convolution)
    vectors, taps = shape[0] * found.vectors, found.taps.shape[0]
    outputs, size = _tile(n, vectors)
    tiles = -(-vectors // size)
    at_once = -(-rows // min(rows, -(-UNITS * team // tiles)))
    width = shape[1] // convolution.groups
    numbers = (width, found.plane, rows, at_once, rows // convolution.groups, tiles, found.pixels)
    return _Plan(
        _kernel(n, taps, dtype, wide, outputs, size),
        found,
        tiles * -(-rows // at_once),
        (*numbers, *found.arguments(shape[0], shape[1], rows * n)),
    )


def convolution(
    x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None, convolution: Convolution
) -> Tensor:
    """The convolution of x ``[B, C, *sizes]``, multiplied as float32; the result is contiguous.

    Args:
        x: of any floating-point dtype, which the result has.
        values: ``[blocks, T, N]``.
        inputs: ``[blocks]``, int16 or int32.
        starts: ``[O / N + 1]``, int32.
        bias: ``[O]``.
    """
    blocks, _, n = values.shape
    values, inputs, starts = aligned(values), aligned(inputs), aligned(starts)
    rows, dtype = starts.shape[0] - 1, x.dtype
    if not (x.numel() and rows):
        return without_inputs(x, bias, rows * n, convolution)
    plan = _plan(x.shape, convolution, n, rows, values.dtype, inputs.dtype == torch.int32, torch.get_num_threads())
    out = x.new_empty(x.shape[0], rows * n, *plan.columns.sizes, dtype=torch.float32)
    x = lay_out(x, convolution, plan.columns)
    start = x.new_zeros(rows * n, dtype=torch.float32) if bias is None else bias.float().contiguous()
    addresses = [t.data_ptr() for t in (values, inputs, starts, x, out, start, plan.columns.taps)]
    threads.run(plan.kernel, plan.units, (*addresses, blocks, *plan.numbers))
    return out.to(dtype)


_ROW = Convolution((1,), (1,), (0,), (1,), 1)


def matmul(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ W^T + bias`` of x ``[B, I]``, values ``[blocks, N]``: sixteen rows of x are the pixels of an image."""
    batch, width = x.shape
    outputs = (len(starts) - 1) * values.shape[1]
    if not x.numel():
        return (x.new_zeros(outputs) if bias is None else bias.to(x.dtype)).repeat(batch, 1)
    images = -(-batch // LANES)
    if batch < images * LANES:
        x = F.pad(x, (0, 0, 0, images * LANES - batch))
    pixels = x.reshape(images, LANES, width).transpose(1, 2)
    out = convolution(pixels, values[:, None], inputs, starts, bias, _ROW)
    return out.transpose(1, 2).reshape(images * LANES, outputs)[:batch].contiguous()
