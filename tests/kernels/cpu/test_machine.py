"""LLVM code for this processor."""

from __future__ import annotations

import ctypes
import gc

import pytest

pytest.importorskip("llvmlite")

from llvmlite import ir

from lightning_nm.kernels.cpu.machine import compiled, features


def test_code_outlives_its_module() -> None:
    """The engine is kept for as long as the process."""
    integer = ir.IntType(64)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [integer.as_pointer()]), "twice")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.store(builder.shl(builder.load(function.args[0]), ir.Constant(integer, 1)), function.args[0])
    builder.ret_void()
    twice = compiled(module, "twice")
    del module, function, builder
    gc.collect()
    cell = (ctypes.c_int64 * 1)(21)
    twice(ctypes.addressof(cell))
    assert cell[0] == 42


def test_features_are_named() -> None:
    """Whatever they are."""
    assert all(isinstance(name, str) for name in features())
