"""x @ W^T for packed 1xN weights, N a multiple of 16: one input in all lanes, times the N weights of its block."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from itertools import product

import torch
from llvmlite import ir
from torch import Tensor

from lightning_nm.kernels import packed_blocks
from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.emit import I16, I32, I64, LANES, Kernel, Value, number, zeros
from lightning_nm.kernels.cpu.machine import compiled
from lightning_nm.kernels.cpu.stored import STORED, aligned, floats

SUMS = 8
"""Vectors of sums that a kernel holds for its rows of x; more, and what passes through finds no register."""
CHAINS = 8
"""Multiply-adds that hide each other's latency: where sums are fewer, several blocks have sums of their own."""
_VALUES, _INPUTS, _STARTS, _X, _OUT, _BIAS, _WIDTH, _OUT_STRIDE, _TILES, _BLOCKS = range(2, 12)


@cache
def _kernel(n: int, dtype: torch.dtype, wide: bool, rows: int) -> Callable[[int], None]:
    """For tiles of so many rows of x; ``wide``: inputs are counted in 32 bits."""
    kernel = Kernel("block_matmul")
    b, stored, vectors = kernel.builder, STORED[dtype], n // LANES
    vector = ir.VectorType(stored, LANES)
    values, inputs = kernel.address(_VALUES, stored), kernel.address(_INPUTS, I32 if wide else I16)
    starts, x = kernel.address(_STARTS, I32), kernel.address(_X)
    out, bias = kernel.address(_OUT), kernel.address(_BIAS)
    width, out_stride, tiles = kernel.argument(_WIDTH), kernel.argument(_OUT_STRIDE), kernel.argument(_TILES)
    held, last = kernel.argument(_BLOCKS), b.sub(width, number(1))
    unrolled = max(1, CHAINS // (rows * vectors))

    def unit(row: Value) -> None:
        # whatever the tensors hold, nothing is read beyond their ends
        first, end = (kernel.at_most(b.zext(b.load(b.gep(starts, [b.add(row, number(i))])), I64), held) for i in (0, 1))
        blocks = b.sub(end, first)
        outputs = [kernel.sum(kernel.times(row, n), number(v * LANES)) for v in range(vectors)]
        start = [kernel.load(bias, output) for output in outputs]

        def tile(index: Value, _: list[Value]) -> list[Value]:
            place = kernel.times(kernel.times(index, rows), width)

            def block(which: Value, sums: list[Value]) -> list[Value]:
                column = kernel.at_most(b.zext(b.load(b.gep(inputs, [which])), I64), last)
                column = kernel.times(column, rows)
                weights = [
                    floats(
                        kernel, kernel.load_aligned(values, b.add(kernel.times(which, n), number(v * LANES)), vector)
                    )
                    for v in range(vectors)
                ]
                seen = [
                    kernel.everywhere(b.load(b.gep(x, [kernel.sum(place, column, number(r))]))) for r in range(rows)
                ]
                return [kernel.fma(w, s, t) for (s, w), t in zip(product(seen, weights), sums)]

            def several(at: Value, sums: list[Value]) -> list[Value]:
                begin = b.add(first, kernel.times(at, unrolled))
                size = rows * vectors
                return [
                    s for u in range(unrolled) for s in block(b.add(begin, number(u)), sums[u * size : (u + 1) * size])
                ]

            size = rows * vectors
            begun = start * rows + [zeros()] * (size * (unrolled - 1))
            whole = b.sdiv(blocks, number(unrolled))
            parts = kernel.loop(whole, begun, several)
            sums = [reduce(b.fadd, parts[i::size]) for i in range(size)]
            done = b.add(first, kernel.times(whole, unrolled))
            sums = kernel.loop(b.sub(end, done), sums, lambda at, sums: block(b.add(done, at), sums))
            for r in range(rows):
                y = kernel.times(b.add(kernel.times(index, rows), number(r)), out_stride)
                for v in range(vectors):
                    kernel.store(sums[r * vectors + v], out, b.add(y, outputs[v]))
            return []

        kernel.loop(tiles, [], tile)

    return compiled(kernel.units(unit), kernel.name)


def supports(values: Tensor) -> bool:
    """Whether there is a kernel for blocks ``[blocks, N]`` of this dtype and N."""
    return values.dtype in STORED and values.shape[1] % LANES == 0


def matmul(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ W^T + bias`` of x ``[B, I]``, multiplied as float32.

    Args:
        x: of any floating-point dtype, which the result has.
        values: ``[blocks, N]``.
        inputs: ``[blocks]``, int16 or int32.
        starts: ``[O / N + 1]``, int32.
        bias: ``[O]``.
    """
    n = values.shape[1]
    values, inputs, starts = aligned(values), aligned(inputs), aligned(starts)
    outputs, batch = (len(starts) - 1) * n, len(x)
    if not x.shape[1]:  # no input to read
        return packed_blocks.matmul(x, values, inputs, starts, bias)
    start = torch.zeros(outputs) if bias is None else bias.float().contiguous()
    out = torch.empty(batch, outputs)
    done, most = 0, max(1, SUMS * LANES // n)
    for rows in dict.fromkeys((most, max(1, most // 2), 1)):
        tiles = (batch - done) // rows
        if tiles:
            # the rows of a tile side by side: what a block meets of them lies in one line of the cache
            some = x[done : done + tiles * rows].float().view(tiles, rows, -1).transpose(1, 2).contiguous()
            kernel = _kernel(n, values.dtype, inputs.dtype == torch.int32, rows)
            addresses = [t.data_ptr() for t in (values, inputs, starts, some, out[done:], start)]
            threads.run(kernel, len(starts) - 1, (*addresses, x.shape[1], outputs, tiles, len(values)))
            done += tiles * rows
    return out.to(x.dtype)
