"""Weights as they are stored, and as they are multiplied."""

from __future__ import annotations

from functools import lru_cache

import torch
from llvmlite import ir
from torch import Tensor

from lightning_nm.kernels.cpu.emit import F32, I16, I32, Kernel, Value

STORED = {torch.float32: F32, torch.bfloat16: I16, torch.float16: ir.HalfType()}
"""dtype -> LLVM's type of one weight in memory."""


def aligned(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy of it that lies row by row from a multiple of 64 bytes on, as kernels read it."""
    there = tensor.is_contiguous() and tensor.data_ptr() % 64 == 0
    return tensor if there else tensor.clone(memory_format=torch.contiguous_format)


def floats(kernel: Kernel, raw: Value) -> Value:
    """A vector of stored weights as floats."""
    b, element, lanes = kernel.builder, raw.type.element, raw.type.count
    if element == I16:  # bfloat16 is the upper half of a float
        wide = ir.VectorType(I32, lanes)
        return b.bitcast(b.shl(b.zext(raw, wide), ir.Constant(wide, [16] * lanes)), ir.VectorType(F32, lanes))
    return raw if element == F32 else b.fpext(raw, ir.VectorType(F32, lanes))


@lru_cache(64)
def nothing(outputs: int) -> Tensor:
    """The bias of a layer that has none."""
    return torch.zeros(outputs, dtype=torch.float32, device="cpu")
