"""Products with packed N:M weights: sixteen outputs in sixteen lanes, each picking its own inputs.

A window of inputs lies in one register (M above 16: in two). The positions of a weight vector pick each lane's input,
and one multiply-add does sixteen outputs. Several rows of inputs share the weights that were loaded, several groups of
outputs share the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from math import prod
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.emit import I64, LANES, WORDS, Kernel, Value, number, words
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
from lightning_nm.kernels.packed_nm import Layout

ROWS = 7
"""At a time, at most."""
GROUPS = 4
"""At a time, of at most `FEW` rows; half of that beside more. Their sums, and what passes through, take registers."""
FEW = 4
_VALUES, _POSITIONS, _X, _OUT, _BIAS, _BASES, _WINDOWS = range(2, 9)
_CHUNKS, _GROUPS, _COLUMNS, _ROWS, _SPAN, _OUT_STRIDE = range(9, 15)


def supports(values: Tensor) -> bool:
    """Whether there is a kernel for weights of this dtype."""
    return values.dtype in STORED


@cache
def _kernel(shape: Layout, dtype: torch.dtype, groups: int, rows: int, whole: bool) -> Callable[[int], None]:
    """For so many groups of outputs and rows of x at a time. Of the layout only the shape of a chunk counts.

    ``whole``: outputs are a multiple of 16.
    """
    kernel = Kernel("nm_matmul")
    b = kernel.builder
    stored = STORED[dtype]
    vector = ir.VectorType(stored, LANES)
    values, positions = kernel.address(_VALUES, stored), kernel.address(_POSITIONS, ir.IntType(32))
    x, out, bias = kernel.address(_X), kernel.address(_OUT), kernel.address(_BIAS)
    bases, windows = kernel.address(_BASES, I64), kernel.address(_WINDOWS, I64)
    chunks, out_stride = kernel.argument(_CHUNKS), kernel.argument(_OUT_STRIDE)
    columns = kernel.argument(_COLUMNS)
    bits = 32 // shape.per_word

    def unit(index: Value) -> None:
        column, span = b.urem(index, columns), b.udiv(index, columns)
        group = kernel.at_most(kernel.times(column, groups), b.sub(kernel.argument(_GROUPS), number(groups)))
        outputs = [kernel.times(b.add(group, number(g)), LANES) for g in range(groups)]
        there = [None if whole else kernel.first(b.sub(out_stride, output)) for output in outputs]
        start = [
            kernel.load(bias, output) if mask is None else kernel.load_some(bias, output, mask)
            for output, mask in zip(outputs, there)
        ]

        def tile(row: Value) -> None:
            own = [b.gep(x, [b.load(b.gep(bases, [b.add(row, number(r))]))]) for r in range(rows)]

            def chunk(at: Value, sums: list[Value]) -> list[Value]:
                place = [b.add(kernel.times(b.add(group, number(g)), chunks), at) for g in range(groups)]
                taken = [
                    [_vector(kernel, positions, kernel.times(p, shape.words), w, WORDS) for w in range(shape.words)]
                    for p in place
                ]
                for window in range(shape.windows):
                    inputs = b.load(b.gep(windows, [b.add(kernel.times(at, shape.windows), number(window))]))
                    seen = [_window(kernel, o, inputs, shape.window) for o in own]
                    for weight in range(window * shape.kept, (window + 1) * shape.kept):
                        word, slot = divmod(weight, shape.per_word)
                        for g in range(groups):
                            raw = _vector(kernel, values, kernel.times(place[g], shape.weights), weight, vector)
                            value = floats(kernel, raw)
                            picked = b.lshr(taken[g][word], words(bits * slot))
                            for r in range(rows):
                                s = g * rows + r
                                sums[s] = kernel.fma(value, kernel.pick(seen[r], picked), sums[s])
                return sums

            sums = kernel.loop(chunks, [start[g] for g in range(groups) for _ in range(rows)], chunk)
            for g in range(groups):
                for r in range(rows):
                    y = kernel.times(b.add(row, number(r)), out_stride)
                    if (mask := there[g]) is None:
                        kernel.store(sums[g * rows + r], out, b.add(y, outputs[g]))
                    else:
                        kernel.store_some(sums[g * rows + r], mask, out, b.add(y, outputs[g]))

        each_tile(kernel, span, rows, kernel.argument(_SPAN), kernel.argument(_ROWS), tile)

    return compiled(kernel.units(unit), kernel.name)


def _vector(kernel: Kernel, pointer: Value, first: Value, which: int, what: ir.Type) -> Value:
    """Of vectors that lie one after the other, counted in vectors."""
    return kernel.load_aligned(pointer, kernel.times(kernel.builder.add(first, number(which)), LANES), what)


def _window(kernel: Kernel, row: Value, first: Value, inputs: int) -> list[Value]:
    """So many inputs, in one register or two."""
    parts = range(0, inputs, LANES)
    places = [kernel.builder.add(first, number(part)) for part in parts]
    return [
        kernel.load(row, place) if inputs - part >= LANES else kernel.load_some(row, place, kernel.first(inputs - part))
        for part, place in zip(parts, places)
    ]


def matmul(x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, layout: Layout, outputs: int) -> Tensor:
    """Compiled `lightning_nm.kernels.packed_nm.matmul`; x is multiplied as float32."""
    rows = matrix_rows(x.shape[0], _width(layout, 1))
    out = _multiply(held_matrix(x, rows), rows, 1, values, positions, bias, layout, outputs)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def fits(layout: Layout, outputs: int, convolution: Convolution) -> bool:
    """Whether the groups of a convolution are whole groups of lanes, and whole windows."""
    groups = convolution.groups
    return groups == 1 or (outputs // groups % LANES == 0 and layout.inputs % layout.window == 0)


def convolution(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    layout: Layout,
    outputs: int,
    convolution: Convolution,
) -> Tensor:
    """Of x ``[B, C, *sizes]``, multiplied as float32; the result ``[B, O, *sizes]`` has its channels last."""
    rows = pixel_rows(x.shape, convolution, convolution.groups * _width(layout, prod(convolution.kernel)))
    held = held_pixels(x, rows, convolution)
    out = _multiply(held, rows, convolution.groups, values, positions, bias, layout, outputs).movedim(-1, 1)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def _width(layout: Layout, taps: int) -> int:
    """Inputs of a tap, in whole windows."""
    return -(-layout.inputs // taps // layout.window) * layout.window


class _Plan(NamedTuple):
    kernel: Callable[[int], None]
    units: int
    windows: Tensor
    """int64, where each starts."""
    steps: tuple[int, ...]
    """Bytes from one group of a convolution to the next: of the kernel's arguments from `_VALUES` to `_BIAS`."""
    sizes: tuple[int, ...]
    """The kernel's arguments from `_CHUNKS` on."""


@lru_cache(256)
def _plan(
    layout: Layout, dtype: torch.dtype, total: int, taps: tuple[int, ...], groups: int, parts: int, outputs: int
) -> _Plan:
    """For so many rows, and groups of lanes in each of ``parts`` parts of the outputs."""
    rows = tile_rows(total, ROWS)
    groups //= parts
    together = min(groups, GROUPS if rows <= FEW else GROUPS // 2)
    columns = -(-groups // together)
    share = spans(total, rows, columns)
    width = _width(layout, len(taps))
    windows = torch.arange(0, width, layout.window, device="cpu")
    windows = (torch.tensor(taps, device="cpu")[:, None] + windows).flatten()
    # those that only fill up the last chunk have no weights: they look at the last true one
    windows = torch.cat([windows, windows[-1:].expand(layout.chunks * layout.windows - len(windows))])
    vectors, lanes = groups * layout.chunks, groups * LANES * 4
    return _Plan(
        _kernel(layout._replace(inputs=0, chunks=0), dtype, together, rows, outputs % LANES == 0),
        columns * share.spans,
        windows,
        (
            vectors * layout.weights * LANES * dtype.itemsize,
            vectors * layout.words * LANES * 4,
            width * 4,
            lanes,
            lanes,
        ),
        (layout.chunks, groups, columns, total, share.size, outputs),
    )


def _multiply(
    x: Tensor,
    rows: Rows,
    parts: int,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    layout: Layout,
    outputs: int,
) -> Tensor:
    """``[*rows.shape, O]``; each of ``parts`` parts of the outputs sees a part of the inputs."""
    out = x.new_empty(*rows.shape, outputs)
    if not out.numel():
        return out
    values, positions = aligned(values), aligned(positions)
    start = nothing(outputs) if bias is None else bias.float().contiguous()
    plan = _plan(layout, values.dtype, rows.bases.shape[0], rows.taps, values.shape[0], parts, outputs)
    first = [tensor.data_ptr() for tensor in (values, positions, x, out, start)]
    tables = rows.bases.data_ptr(), plan.windows.data_ptr()
    for part in range(parts):
        own = [place + part * step for place, step in zip(first, plan.steps)]
        threads.run(plan.kernel, plan.units, (*own, *tables, *plan.sizes))
    return out
