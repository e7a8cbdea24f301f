"""The building blocks of matrix kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite")

from lightning_nm.kernels.cpu import emit
from lightning_nm.kernels.cpu.emit import FLOATS, WORDS, Kernel, Value, number, zeros
from lightning_nm.kernels.cpu.machine import compiled


def run(body: Callable[[Kernel, Value, Value], Value], x: Tensor, index: Tensor) -> Tensor:
    """What ``body(kernel, address of x, address of index)`` returns, a vector."""
    kernel, out = Kernel("tried"), torch.empty(16)

    def unit(_: Value) -> None:
        result = body(kernel, kernel.address(2), kernel.address(3, emit.I32))
        kernel.store(result, kernel.address(4), number(0))

    arguments = (ctypes.c_int64 * 5)(0, 1, x.data_ptr(), index.data_ptr(), out.data_ptr())
    compiled(kernel.units(unit), kernel.name)(ctypes.addressof(arguments))
    return out


@pytest.mark.parametrize("features", [{"avx512f", "avx2"}, {"avx2"}, set()], ids=["AVX-512", "AVX2", "any processor"])
@pytest.mark.parametrize("registers", [1, 2])
def test_pick(registers: int, features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every lane its own entry; bits of the index beyond the window are not looked at."""
    if not features <= emit.features():
        pytest.skip(f"this processor has no {features - emit.features()}")
    monkeypatch.setattr(emit, "features", lambda: features)
    x = torch.randn(16 * registers)
    index = torch.randint(0, 16 * registers, (16,), dtype=torch.int32)

    def body(kernel: Kernel, x: Value, index: Value) -> Value:
        window = [kernel.load(x, number(16 * part)) for part in range(registers)]
        return kernel.pick(window, kernel.load(index, number(0), WORDS))

    assert torch.equal(run(body, x, index | (5 << 8)), x[index.long()])


def test_loops_carry_values() -> None:
    """Nested, and not entered where there is nothing to do."""

    def body(kernel: Kernel, x: Value, index: Value) -> Value:
        def outer(i: Value, sums: list[Value]) -> list[Value]:
            def inner(_: Value, sums: list[Value]) -> list[Value]:
                return [kernel.fma(kernel.load(x, number(0)), kernel.load(x, number(16)), sums[0])]

            return kernel.loop(i, sums, inner)  # 0 + 1 + 2 times

        return kernel.loop(number(3), [zeros()], outer)[0]

    x = torch.randn(32)
    torch.testing.assert_close(run(body, x, torch.zeros(16, dtype=torch.int32)), 3 * x[:16] * x[16:])


def test_one_float_everywhere() -> None:
    """In all lanes."""

    def body(kernel: Kernel, x: Value, index: Value) -> Value:
        return kernel.everywhere(kernel.load(x, number(3), FLOATS.element))

    x = torch.randn(16)
    assert torch.equal(run(body, x, torch.zeros(16, dtype=torch.int32)), x[3].expand(16))


def test_prefetch_needs_nothing_there() -> None:
    """Wherever it asks for a line, nothing happens that one could see."""

    def body(kernel: Kernel, x: Value, index: Value) -> Value:
        for offset in (0, 3, 1 << 40):
            kernel.prefetch(x, number(offset))
        return kernel.load(x, number(0))

    x = torch.randn(16)
    assert torch.equal(run(body, x, torch.zeros(16, dtype=torch.int32)), x)


def test_a_thread_has_memory_of_its_own() -> None:
    """Each that comes takes the next part."""
    kernel, out = Kernel("tried"), torch.zeros(48)
    own = kernel.own(3, kernel.address(2), number(16))
    module = kernel.units(lambda unit: kernel.store(kernel.everywhere(emit.F32(1.0)), own, number(0)))
    arguments, tried = (ctypes.c_int64 * 4)(0, 1, out.data_ptr(), 0), compiled(module, kernel.name)
    for _ in range(2):
        arguments[0] = 0
        tried(ctypes.addressof(arguments))
    assert torch.equal(out, torch.arange(48).lt(32).float())


@pytest.mark.parametrize("which", [0, 1])
def test_either(which: int) -> None:
    """One way or the other."""

    def body(kernel: Kernel, x: Value, index: Value) -> Value:
        condition = kernel.builder.icmp_signed("==", number(which), number(0))
        first, second = (lambda at=at: [kernel.load(x, number(16 * at))] for at in range(2))
        return kernel.either(condition, first, second)[0]

    x = torch.randn(32)
    assert torch.equal(run(body, x, torch.zeros(16, dtype=torch.int32)), x[16 * which :][:16])


def test_some_lanes_are_stored() -> None:
    """The others keep what was there."""
    kernel, out, x = Kernel("tried"), torch.zeros(16), torch.randn(16)

    def unit(_: Value) -> None:
        vector = kernel.load(kernel.address(2), number(0))
        positive = kernel.builder.fcmp_ordered(">", vector, zeros())
        kernel.store_some(vector, positive, kernel.address(3), number(0))

    arguments = (ctypes.c_int64 * 4)(0, 1, x.data_ptr(), out.data_ptr())
    compiled(kernel.units(unit), kernel.name)(ctypes.addressof(arguments))
    assert torch.equal(out, x.relu())
