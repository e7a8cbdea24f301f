"""Packed N:M weights times columns: every weight picks the row of inputs that its position names.

A unit, some groups of outputs and a tile of columns, goes through the inputs in parts that fit the first cache: the
tile's columns of them are copied side by side, the positions of a group become offsets in that copy, and each weight
then costs one multiply-add a vector, whose operand it reads from there. Sums wait in memory between two parts.

See `lightning_nm.kernels.cpu.columns`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from itertools import count
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.columns import Columns, columns, lay_out, registers, store, tile, without_inputs
from lightning_nm.kernels.cpu.emit import I32, I64, LANES, WORDS, Kernel, Value, number, words
from lightning_nm.kernels.cpu.machine import compiled
from lightning_nm.kernels.cpu.stored import STORED, aligned, floats
from lightning_nm.kernels.packed_nm import Layout

VECTORS = 7
"""Of columns at a time, at most."""
CACHED = 20 << 10
"""Bytes of the inputs that a unit copies at a time: with a group's weights they fill the first cache."""
GROUPS = 32
"""Of outputs in a unit, at most: their sums wait in the second cache."""
_OVER = 32
"""Rows behind the copied inputs that wrong positions may name."""
_VALUES, _POSITIONS, _X, _OUT, _BIAS, _ROWS, _SCRATCH, _THREAD, _SCRATCH_SIZE, _CHUNKS = range(2, 12)
_WINDOWS_AT_ONCE, _OUTPUTS, _PIXELS, _TILES, _PARTS, _GROUPS, _GROUPS_AT_ONCE, _GROUP_INPUTS, _COLUMNS = range(12, 21)


def _sums() -> int:
    """Vectors of sums that a kernel holds."""
    return registers() * 3 // 4


@cache
def _kernel(shape: Layout, dtype: torch.dtype, vectors: int) -> Callable[[int], None]:
    """For so many vectors at a time. Of the layout only the shape of a chunk counts."""
    kernel = Kernel("nm_columns")
    b, stored = kernel.builder, STORED[dtype]
    values, positions = kernel.address(_VALUES, stored), kernel.address(_POSITIONS, I32)
    x, out, bias = kernel.address(_X), kernel.address(_OUT), kernel.address(_BIAS)
    rows = kernel.address(_ROWS, I64)
    chunks, windows_at_once = kernel.argument(_CHUNKS), kernel.argument(_WINDOWS_AT_ONCE)
    last_output, pixels = kernel.argument(_OUTPUTS), kernel.argument(_PIXELS)
    tiles, parts, groups = kernel.argument(_TILES), kernel.argument(_PARTS), kernel.argument(_GROUPS)
    groups_at_once, group_inputs = kernel.argument(_GROUPS_AT_ONCE), kernel.argument(_GROUP_INPUTS)
    weights_at_once = kernel.times(windows_at_once, shape.kept)
    windows = kernel.times(chunks, shape.windows)
    group_values, group_positions = (kernel.times(chunks, size * LANES) for size in (shape.weights, shape.words))
    bits, width = 32 // shape.per_word, LANES * vectors
    outputs = max(o for o in (1, 2, 4, 8, 16) if o * vectors <= _sums())

    seen = kernel.own(_THREAD, kernel.address(_SCRATCH), kernel.argument(_SCRATCH_SIZE))
    taken = b.gep(seen, [kernel.times(b.add(kernel.times(windows_at_once, shape.window), number(_OVER)), width)])
    offsets = b.bitcast(b.gep(taken, [kernel.times(weights_at_once, LANES)]), I32.as_pointer())
    waiting = b.gep(taken, [kernel.times(weights_at_once, 2 * LANES)])

    def unit(index: Value) -> None:
        part = b.udiv(index, tiles)
        found = tile(kernel, _COLUMNS, b.sub(index, b.mul(part, tiles)), vectors)
        of = b.udiv(part, parts)  # the convolution's group
        first = b.mul(b.sub(part, b.mul(of, parts)), groups_at_once)
        some_groups = b.sub(kernel.at_most(b.add(first, groups_at_once), groups), first)
        first = b.add(b.mul(of, groups), first)
        columns_of = [b.add(b.mul(of, group_inputs), start) for start in found.inputs]

        def some_inputs(at: Value, _: list[Value]) -> list[Value]:
            window = b.mul(at, windows_at_once)
            end = kernel.at_most(b.add(window, windows_at_once), windows)
            some_windows, row = b.sub(end, window), kernel.times(window, shape.window)

            def copy(at: Value, _: list[Value]) -> list[Value]:
                start = b.load(b.gep(rows, [b.add(row, at)]))
                for v, column in enumerate(columns_of):
                    place = b.add(kernel.times(at, width), number(v * LANES))
                    kernel.store(kernel.load(x, b.add(start, column)), seen, place)
                return []

            kernel.loop(kernel.times(some_windows, shape.window), [], copy)
            weights = kernel.times(some_windows, shape.kept)

            def group(at: Value, _: list[Value]) -> list[Value]:
                which = b.add(first, at)

                def decode(at: Value, _: list[Value]) -> list[Value]:
                    weight = b.add(kernel.times(window, shape.kept), at)
                    chunk = b.udiv(weight, number(shape.weights))
                    within = b.sub(weight, kernel.times(chunk, shape.weights))
                    chunk = b.add(b.mul(which, chunks), chunk)
                    word = b.add(kernel.times(chunk, shape.words), b.udiv(within, number(shape.per_word)))
                    shift = kernel.times(b.and_(within, number(shape.per_word - 1)), bits)
                    index = kernel.load_aligned(positions, kernel.times(word, LANES), WORDS)
                    index = b.and_(b.lshr(index, _every_lane(kernel, shift)), words(min(_OVER, 2**bits) - 1))
                    base = _every_lane(kernel, kernel.times(b.udiv(at, number(shape.kept)), shape.window))
                    place = kernel.times(at, LANES)
                    kernel.store(b.mul(b.add(index, base), words(width)), offsets, place)
                    value = kernel.times(b.add(kernel.times(chunk, shape.weights), within), LANES)
                    # the next group's, too far away for the processor to see them coming
                    kernel.prefetch(values, b.add(value, group_values))
                    kernel.prefetch(positions, b.add(kernel.times(word, LANES), group_positions))
                    raw = kernel.load_aligned(values, value, ir.VectorType(stored, LANES))
                    kernel.store(floats(kernel, raw), taken, place)
                    return []

                kernel.loop(weights, [], decode)

                def some_outputs(index: Value, _: list[Value]) -> list[Value]:
                    lane = kernel.times(index, outputs)
                    output = b.add(kernel.times(which, LANES), lane)
                    wait = kernel.times(b.add(kernel.times(at, LANES), lane), width)

                    def begun() -> list[Value]:
                        start = [b.load(b.gep(bias, [b.add(output, number(o))])) for o in range(outputs)]
                        return [kernel.everywhere(s) for s in start for _ in range(vectors)]

                    def resumed() -> list[Value]:
                        return [kernel.load(waiting, b.add(wait, number(i * LANES))) for i in range(outputs * vectors)]

                    def weight(at: Value, sums: list[Value]) -> list[Value]:
                        added, place = [], b.add(kernel.times(at, LANES), lane)
                        for o in range(outputs):
                            own = b.add(place, number(o))
                            value = kernel.everywhere(b.load(b.gep(taken, [own])))
                            row = b.gep(seen, [b.zext(b.load(b.gep(offsets, [own])), I64)])
                            for v in range(vectors):
                                column = kernel.load(row, number(v * LANES))
                                added.append(kernel.fma(value, column, sums[o * vectors + v]))
                        return added

                    sums = kernel.either(b.icmp_unsigned("==", window, number(0)), begun, resumed)
                    sums = kernel.loop(weights, sums, weight)

                    def done() -> list[Value]:
                        for o in range(outputs):
                            own = b.add(output, number(o))

                            def stored(own: Value = own, o: int = o) -> list[Value]:
                                some = sums[o * vectors : (o + 1) * vectors]
                                store(kernel, found, some, out, b.mul(own, pixels))
                                return []

                            kernel.either(b.icmp_unsigned("<", own, last_output), stored, list)
                        return []

                    def set_aside() -> list[Value]:
                        for i, total in enumerate(sums):
                            kernel.store(total, waiting, b.add(wait, number(i * LANES)))
                        return []

                    kernel.either(b.icmp_unsigned("==", end, windows), done, set_aside)
                    return []

                kernel.loop(number(LANES // outputs), [], some_outputs)
                return []

            kernel.loop(some_groups, [], group)
            return []

        times = b.udiv(b.add(windows, b.sub(windows_at_once, number(1))), windows_at_once)
        kernel.loop(times, [], some_inputs)

    return compiled(kernel.units(unit), kernel.name)


def _every_lane(kernel: Kernel, integer: Value) -> Value:
    """The lower half of an integer in all lanes."""
    unset = ir.Constant(WORDS, ir.Undefined)
    single = kernel.builder.insert_element(unset, kernel.builder.trunc(integer, I32), I32(0))
    return kernel.builder.shuffle_vector(single, unset, words(0))


def supports(values: Tensor, outputs: int, groups: int) -> bool:
    """Whether there is a kernel: no sixteen outputs may lie in two groups of a convolution."""
    return values.dtype in STORED and (groups == 1 or outputs // groups % LANES == 0)


class _Plan(NamedTuple):
    """All that a call needs and that only sizes tell."""

    kernel: Callable[[int], None]
    columns: Columns
    rows: Tensor
    """int64: where in an image each input of each tap begins."""
    units: int
    scratch: int
    """Floats that a thread needs."""
    numbers: tuple[int, ...]


@lru_cache(1024)
def _plan(
    shape: torch.Size, convolution: Convolution, layout: Layout, outputs: int, dtype: torch.dtype, team: int
) -> _Plan:
    """For so many threads."""
    found = columns(tuple(shape[2:]), convolution)
    inputs, every = shape[1] // convolution.groups, shape[0] * found.vectors
    rows = (found.taps[:, None] + torch.arange(inputs, device="cpu") * found.plane).flatten()
    all_windows = layout.chunks * layout.windows
    # a vector is one multiply-add; its weight and where to find its input cost about one more, whatever their number
    vectors = min(range(min(VECTORS, _sums()), 0, -1), key=lambda size: -(-every // size) * (size + 1))
    tiles = -(-every // vectors)
    windows = min(all_windows, max(1, CACHED // (4 * LANES * vectors * layout.window)))
    groups = -(-outputs // LANES) // convolution.groups
    # as few parts as keep all threads at work to the end: each copies its inputs anew
    whole = tiles * convolution.groups
    parts = next(p for p in count(-(-groups // GROUPS)) if whole * p % team == 0 or whole * p >= 4 * team)
    at_once = -(-groups // min(groups, parts))
    parts = -(-groups // at_once)
    size = ((windows * layout.window + _OVER) * vectors + 2 * windows * layout.kept + at_once * LANES * vectors) * LANES
    numbers = (size, layout.chunks, windows, outputs, found.pixels, tiles, parts, groups, at_once)
    return _Plan(
        _kernel(layout._replace(inputs=0, chunks=0), dtype, vectors),
        found,
        F.pad(rows, (0, all_windows * layout.window - rows.shape[0])),
        whole * parts,
        size,
        (*numbers, inputs * found.plane, *found.arguments(shape[0], shape[1], outputs)),
    )


def convolution(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    layout: Layout,
    outputs: int,
    convolution: Convolution,
) -> Tensor:
    """The convolution of x ``[B, C, *sizes]`` with packed N:M filters, multiplied as float32; contiguous.

    Args:
        x: of any floating-point dtype, which the result has.
        bias: ``[O]``.
    """
    if not x.numel():
        return without_inputs(x, bias, outputs, convolution)
    dtype, values, positions = x.dtype, aligned(values), aligned(positions)
    lanes, team = values.shape[0] * LANES, torch.get_num_threads()
    start = x.new_zeros(lanes, dtype=torch.float32) if bias is None else bias.float().contiguous()
    if lanes > start.shape[0]:
        start = F.pad(start, (0, lanes - outputs))
    plan = _plan(x.shape, convolution, layout, outputs, values.dtype, team)
    out = x.new_empty(x.shape[0], outputs, *plan.columns.sizes, dtype=torch.float32)
    x = lay_out(x, convolution, plan.columns)
    scratch = x.new_empty(team * plan.scratch, dtype=torch.float32)
    addresses = [t.data_ptr() for t in (values, positions, x, out, start, plan.rows, scratch)]
    threads.run(plan.kernel, plan.units, (*addresses, 0, *plan.numbers))
    return out.to(dtype)
