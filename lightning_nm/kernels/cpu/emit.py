"""Building blocks of matrix kernels, as LLVM vectors of sixteen floats.

LLVM splits the vectors for AVX2 and NEON; only the choice of lanes by index is an instruction of its own everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from lightning_nm.kernels.cpu.machine import features

LANES = 16
F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOATS, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)

Value = Any
"""An LLVM value."""


class Kernel:
    """A function ``void name(int64_t *arguments)`` being written: numbers and addresses are its arguments.

    Its work is cut into units, which whoever calls it takes one after the other: argument 0 is the next unit, 1 the
    number of units. So any number of threads may call it at once with the same arguments.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.module = ir.Module(name)
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), name)
        self.builder = ir.IRBuilder(self.function.append_basic_block())

    def argument(self, at: int) -> Value:
        return self.builder.load(self.builder.gep(self.function.args[0], [number(at)]))

    def address(self, at: int, of: ir.Type = F32) -> Value:
        return self.builder.inttoptr(self.argument(at), of.as_pointer())

    # -- memory ---------------------------------------------------------------------------------------

    def load(self, pointer: Value, offset: Value, what: ir.Type = FLOATS) -> Value:
        """A vector from ``offset`` elements behind ``pointer``, wherever that is."""
        return self.builder.load(self._place(pointer, offset, what), align=2)

    def load_aligned(self, pointer: Value, offset: Value, what: ir.Type = FLOATS) -> Value:
        """A vector that lies at a multiple of its own size."""
        element = {F32: 4, I32: 4}.get(what.element, 2)
        return self.builder.load(self._place(pointer, offset, what), align=what.count * element)

    def _place(self, pointer: Value, offset: Value, what: ir.Type) -> Value:
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), what.as_pointer())

    def store(self, vector: Value, pointer: Value, offset: Value) -> None:
        self.builder.store(vector, self._place(pointer, offset, vector.type), align=4)

    def store_some(self, vector: Value, mask: Value, pointer: Value, offset: Value) -> None:
        """Only the lanes that the mask, sixteen bits, names."""
        address = ir.PointerType(FLOATS)
        store = self._declare(
            "llvm.masked.store.v16f32.p0v16f32",
            ir.VoidType(),
            [FLOATS, address, I32, ir.VectorType(ir.IntType(1), LANES)],
        )
        self.builder.call(store, [vector, self._place(pointer, offset, FLOATS), ir.Constant(I32, 4), mask])

    def prefetch(self, pointer: Value, offset: Value) -> None:
        """Ask for the line of memory that holds an element; there need not be any."""
        line = ir.IntType(8).as_pointer()
        ask = self._declare("llvm.prefetch.p0i8", ir.VoidType(), [line, I32, I32, I32])
        address = self.builder.bitcast(self.builder.gep(pointer, [offset]), line)
        self.builder.call(ask, [address, I32(0), I32(2), I32(1)])  # to read, into the second cache, data

    def own(self, counter: int, memory: Value, size: Value) -> Value:
        """A part of ``memory``, ``size`` elements, for this thread alone: argument ``counter`` counts the threads."""
        b = self.builder
        thread = b.atomic_rmw("add", b.gep(self.function.args[0], [number(counter)]), number(1), "monotonic")
        return b.gep(memory, [b.mul(thread, size)])

    def load_some(self, pointer: Value, offset: Value, mask: Value) -> Value:
        """Floats where ``mask`` is true and zeros elsewhere; nothing else is read."""
        place = self._place(pointer, offset, FLOATS)
        load = self._declare("llvm.masked.load.v16f32.p0v16f32", FLOATS, [place.type, I32, mask.type, FLOATS])
        return self.builder.call(load, [place, ir.Constant(I32, 4), mask, zeros()])

    def first(self, count: Value | int) -> Value:
        """The mask of so many first lanes."""
        if isinstance(count, int):
            return ir.Constant(MASK, [int(lane < count) for lane in range(LANES)])
        return self.builder.icmp_signed("<", ir.Constant(WORDS, list(range(LANES))), self.every_lane(count))

    # -- vectors --------------------------------------------------------------------------------------

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        name = f"llvm.fma.v{a.type.count}f32"
        return self.builder.call(self._declare(name, a.type, [a.type] * 3), [a, b, c])

    def everywhere(self, scalar: Value, lanes: int = LANES) -> Value:
        """One float in all lanes."""
        unset = ir.Constant(ir.VectorType(F32, lanes), ir.Undefined)
        single = self.builder.insert_element(unset, scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(single, unset, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))

    def every_lane(self, integer: Value) -> Value:
        """The lower half of an integer in all lanes."""
        single = self.builder.insert_element(
            ir.Constant(WORDS, ir.Undefined), self.builder.trunc(integer, I32), ir.Constant(I32, 0)
        )
        return self.builder.shuffle_vector(single, ir.Constant(WORDS, ir.Undefined), words(0))

    def pick(self, window: Sequence[Value], index: Value) -> Value:
        """Lane l gets entry ``index[l]`` of 16 or 32 floats; index bits above those needed do not matter."""
        if "avx512f" in features():
            if len(window) == 1:
                permute = self._declare("llvm.x86.avx512.permvar.sf.512", FLOATS, [FLOATS, WORDS])
                return self.builder.call(permute, [window[0], index])
            permute = self._declare("llvm.x86.avx512.vpermi2var.ps.512", FLOATS, [FLOATS, WORDS, FLOATS])
            return self.builder.call(permute, [window[0], index, window[1]])
        if "avx2" in features():
            return self._pick_avx2(window, index)
        return self._pick_one_by_one(window, index)

    def _pick_avx2(self, window: Sequence[Value], index: Value) -> Value:
        """Eight lanes at a time: from each eight of the window, then the right one by the next bits of the index."""
        b, half = self.builder, ir.VectorType(F32, 8)
        permute = self._declare("llvm.x86.avx2.permps", half, [half, ir.VectorType(I32, 8)])
        eights = [self._half(vector, upper) for vector in window for upper in (0, 1)]
        picked = []
        for upper in (0, 1):
            at = self._half(index, upper)
            candidates = [b.call(permute, [eight, at]) for eight in eights]
            bit = 3
            while len(candidates) > 1:
                mask = b.icmp_unsigned("!=", b.and_(at, _eight(1 << bit)), _eight(0))
                candidates = [b.select(mask, high, low) for low, high in zip(candidates[::2], candidates[1::2])]
                bit += 1
            picked.append(candidates[0])
        return b.shuffle_vector(*picked, ir.Constant(WORDS, list(range(LANES))))

    def _half(self, vector: Value, upper: int) -> Value:
        lanes = ir.Constant(ir.VectorType(I32, 8), [8 * upper + lane for lane in range(8)])
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)

    def _pick_one_by_one(self, window: Sequence[Value], index: Value) -> Value:
        b = self.builder
        joined = window[0]
        if len(window) == 2:
            joined = b.shuffle_vector(*window, ir.Constant(ir.VectorType(I32, 32), list(range(32))))
        at = b.and_(index, words(LANES * len(window) - 1))
        picked = ir.Constant(FLOATS, ir.Undefined)
        for lane in range(LANES):
            entry = b.extract_element(joined, b.extract_element(at, ir.Constant(I32, lane)))
            picked = b.insert_element(picked, entry, ir.Constant(I32, lane))
        return picked

    def _declare(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> Value:
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    # -- control --------------------------------------------------------------------------------------

    def loop(
        self, end: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """``for i in range(end): carried = body(i, carried)``."""
        b, before = self.builder, self.builder.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(number(0), before)
        values = [b.phi(value.type) for value in carried]
        b.cbranch(b.icmp_signed("<", index, end), inside, after)
        b.position_at_end(inside)
        results = body(index, list(values))
        index.add_incoming(b.add(index, number(1)), b.block)
        for phi, first, last in zip(values, carried, results):
            phi.add_incoming(first, before)
            phi.add_incoming(last, b.block)
        b.branch(head)
        b.position_at_end(after)
        return list(values)

    def either(
        self, condition: Value, then: Callable[[], Sequence[Value]], otherwise: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """What ``then`` gives where the condition holds, what ``otherwise`` gives elsewhere."""
        b = self.builder
        ways = [self.function.append_basic_block() for _ in range(2)]
        after = self.function.append_basic_block()
        b.cbranch(condition, *ways)
        ends = []
        for way, body in zip(ways, (then, otherwise)):
            b.position_at_end(way)
            results = body()
            ends.append((results, b.block))
            b.branch(after)
        b.position_at_end(after)
        merged = [b.phi(value.type) for value in ends[0][0]]
        for results, block in ends:
            for phi, value in zip(merged, results):
                phi.add_incoming(value, block)
        return merged

    def units(self, body: Callable[[Value], None]) -> ir.Module:
        """Do ``body(unit)`` for every unit that nobody else has taken; ends the function."""
        b = self.builder
        take, inside, done = (self.function.append_basic_block() for _ in range(3))
        b.branch(take)
        b.position_at_end(take)
        unit = b.atomic_rmw("add", self.function.args[0], number(1), "monotonic")
        b.cbranch(b.icmp_signed("<", unit, self.argument(1)), inside, done)
        b.position_at_end(inside)
        body(unit)
        b.branch(take)
        b.position_at_end(done)
        b.ret_void()
        return self.module

    def sum(self, *terms: Value) -> Value:
        total = terms[0]
        for term in terms[1:]:
            total = self.builder.add(total, term)
        return total

    def at_most(self, a: Value, b: Value) -> Value:
        """The lesser of two unsigned numbers."""
        return self.builder.select(self.builder.icmp_unsigned("<", a, b), a, b)

    def times(self, a: Value, b: Value | int) -> Value:
        return self.builder.mul(a, number(b) if isinstance(b, int) else b)


def number(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def words(value: int) -> ir.Constant:
    return ir.Constant(WORDS, [value] * LANES)


def zeros(lanes: int = LANES) -> ir.Constant:
    return ir.Constant(ir.VectorType(F32, lanes), [0.0] * lanes)


def _eight(value: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(I32, 8), [value] * 8)
