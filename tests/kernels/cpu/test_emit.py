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
