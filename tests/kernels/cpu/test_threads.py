"""Units of work on torch's threads."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("llvmlite")

from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.emit import I64, Kernel, Value
from lightning_nm.kernels.cpu.machine import compiled


@pytest.fixture
def counting():
    """A kernel that adds one to the count of every unit it does."""
    kernel = Kernel("count")

    def unit(index: Value) -> None:
        place = kernel.builder.gep(kernel.address(2, I64), [index])
        kernel.builder.store(kernel.builder.add(kernel.builder.load(place), ir_one()), place)

    return compiled(kernel.units(unit), kernel.name)


def ir_one() -> Value:
    from lightning_nm.kernels.cpu.emit import number

    return number(1)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def counts(kernel: object, units: int) -> list[int]:
    done = (ctypes.c_int64 * max(units, 1))()
    threads.run(kernel, units, [ctypes.addressof(done)])  # type: ignore[arg-type]
    return list(done)[:units]


@pytest.mark.parametrize("units", [0, 1, 2, 1000])
def test_every_unit_is_done_once(counting, units, three_threads):
    """By whichever thread."""
    assert counts(counting, units) == [1] * units


def test_without_torchs_openmp(counting, three_threads, monkeypatch):
    """Python's own threads do."""
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    assert counts(counting, 1000) == [1] * 1000


def test_one_thread_is_the_callers(counting):
    """Conftest leaves torch one thread: nothing is started."""
    before = threads._pool.cache_info().misses
    assert counts(counting, 10) == [1] * 10
    assert threads._pool.cache_info().misses == before
