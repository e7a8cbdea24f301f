"""LLVM code for the processor that is here, compiled through llvmlite in about a tenth of a second a kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir


@cache
def features() -> frozenset[str]:
    """What the processor can do, in LLVM's words: ``"avx512f"``, ``"avx2"``, ``"neon"``."""
    return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)


def _machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )


_engines: list[Any] = []  # code lives as long as its engine


def compiled(module: ir.Module, name: str) -> Callable[[int], None]:
    """The function ``void name(int64_t *arguments)`` of a module; called with an address, it lets go of the GIL."""
    machine = _machine()
    module.triple = machine.triple
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address(name))
