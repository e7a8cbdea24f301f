"""x @ W^T for packed N:M weights: sixteen outputs in sixteen lanes, each picking its own inputs.

A window of inputs lies in one register (M above 16: in two). The positions of a weight vector pick each lane's input,
and one multiply-add does sixteen outputs. Weights are streamed once for `ROWS` rows of x; `GROUPS` groups of outputs
share what was loaded of x.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.emit import LANES, WORDS, Kernel, Value, number, words
from lightning_nm.kernels.cpu.machine import compiled
from lightning_nm.kernels.cpu.stored import STORED, aligned, floats
from lightning_nm.kernels.packed_nm import Layout

GROUPS = 4
ROWS = 4
_VALUES, _POSITIONS, _X, _OUT, _BIAS, _CHUNKS, _X_STRIDE, _OUT_STRIDE, _TILES = range(2, 11)


def supports(values: Tensor) -> bool:
    """Whether there is a kernel for weights of this dtype."""
    return values.dtype in STORED


@cache
def _kernel(shape: Layout, dtype: torch.dtype, groups: int, rows: int) -> Callable[[int], None]:
    """For so many groups of outputs and rows of x at a time. Of the layout only the shape of a chunk counts."""
    kernel = Kernel("nm_matmul")
    b = kernel.builder
    stored = STORED[dtype]
    vector = ir.VectorType(stored, LANES)
    values, positions = kernel.address(_VALUES, stored), kernel.address(_POSITIONS, ir.IntType(32))
    x, out, bias = kernel.address(_X), kernel.address(_OUT), kernel.address(_BIAS)
    chunks, tiles = kernel.argument(_CHUNKS), kernel.argument(_TILES)
    x_stride, out_stride = kernel.argument(_X_STRIDE), kernel.argument(_OUT_STRIDE)
    bits = 32 // shape.per_word
    registers = 1 if shape.per_word == 8 else 2

    def unit(first: Value) -> None:
        group = kernel.times(first, groups)
        outputs = [kernel.times(b.add(group, number(g)), LANES) for g in range(groups)]
        start = [kernel.load(bias, output) for output in outputs]

        def tile(index: Value, _: list[Value]) -> list[Value]:
            row = [kernel.times(b.add(kernel.times(index, rows), number(r)), x_stride) for r in range(rows)]

            def chunk(at: Value, sums: list[Value]) -> list[Value]:
                place = [b.add(kernel.times(b.add(group, number(g)), chunks), at) for g in range(groups)]
                taken = [
                    [_vector(kernel, positions, kernel.times(p, shape.words), w, WORDS) for w in range(shape.words)]
                    for p in place
                ]
                for window in range(shape.windows):
                    inputs = kernel.times(b.add(kernel.times(at, shape.windows), number(window)), shape.window)
                    seen = [
                        [kernel.load(x, kernel.sum(r, inputs, number(LANES * part))) for part in range(registers)]
                        for r in row
                    ]
                    for weight in range(window * shape.kept, (window + 1) * shape.kept):
                        word, slot = divmod(weight, shape.per_word)
                        for g in range(groups):
                            raw = _vector(kernel, values, kernel.times(place[g], shape.weights), weight, vector)
                            value = floats(kernel, raw)
                            index = b.lshr(taken[g][word], words(bits * slot))
                            for r in range(rows):
                                s = g * rows + r
                                sums[s] = kernel.fma(value, kernel.pick(seen[r], index), sums[s])
                return sums

            sums = kernel.loop(chunks, [start[g] for g in range(groups) for _ in range(rows)], chunk)
            for g in range(groups):
                for r in range(rows):
                    y = kernel.times(b.add(kernel.times(index, rows), number(r)), out_stride)
                    kernel.store(sums[g * rows + r], out, b.add(y, outputs[g]))
            return []

        kernel.loop(tiles, [], tile)

    return compiled(kernel.units(unit), kernel.name)


def _vector(kernel: Kernel, pointer: Value, first: Value, which: int, what: ir.Type) -> Value:
    """Of vectors that lie one after the other, counted in vectors."""
    return kernel.load_aligned(pointer, kernel.times(kernel.builder.add(first, number(which)), LANES), what)


class _Part(NamedTuple):
    """Outputs and rows of x that one kernel does."""

    groups: int
    """At a time."""
    rows: int
    """At a time."""
    first_group: int
    first_row: int
    units: int
    tiles: int


@lru_cache(1024)
def _parts(groups: int, batch: int) -> list[_Part]:
    """All outputs and rows: as many as possible by several at a time, the others one by one."""

    def cut(total: int, size: int) -> list[tuple[int, int, int]]:  # (first, at a time, times)
        whole = total // size
        pieces = [(0, size, whole), (whole * size, 1, total - whole * size)]
        return [piece for piece in pieces if piece[2]]

    return [
        _Part(group[1], row[1], group[0], row[0], group[2], row[2])
        for row in cut(batch, ROWS)
        for group in cut(groups, GROUPS)
    ]


def matmul(x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, layout: Layout, outputs: int) -> Tensor:
    """Compiled `lightning_nm.kernels.packed_nm.matmul`; x is multiplied as float32."""
    dtype, (groups, chunks, _, _), batch = x.dtype, values.shape, x.shape[0]
    lanes, size = groups * LANES, values.element_size()
    x = x.float()
    x = F.pad(x, (0, layout.reach - layout.inputs)) if layout.reach > layout.inputs else x.contiguous()
    start = x.new_zeros(lanes) if bias is None else F.pad(bias.float(), (0, lanes - outputs)).contiguous()
    out = x.new_empty(batch, lanes)
    values, positions = aligned(values), aligned(positions)
    shape, width = layout._replace(inputs=0, chunks=0), x.shape[1]
    at = [tensor.data_ptr() for tensor in (values, positions, x, out, start)]
    for part in _parts(groups, batch):
        group, row = part.first_group, part.first_row
        addresses = (
            at[0] + group * chunks * shape.weights * LANES * size,
            at[1] + group * chunks * shape.words * LANES * 4,
            at[2] + row * width * 4,
            at[3] + (row * lanes + group * LANES) * 4,
            at[4] + group * LANES * 4,
        )
        kernel = _kernel(shape, values.dtype, part.groups, part.rows)
        threads.run(kernel, part.units, (*addresses, chunks, width, lanes, part.tiles))
    return out[:, :outputs].to(dtype).contiguous()
