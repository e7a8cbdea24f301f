"""Weights as they are stored, and as they are multiplied."""

from __future__ import annotations

from functools import lru_cache

import torch
from llvmlite import ir
from torch import Tensor

from lightning_nm.kernels.cpu.emit import F32, FLOATS, I16, WORDS, Kernel, Value, words

STORED = {torch.float32: F32, torch.bfloat16: I16, torch.float16: ir.HalfType()}
"""dtype -> LLVM's type of one weight in memory."""


def aligned(tensor: Tensor) -> Tensor:
    """``tensor``, or a copy of it that lies row by row from a multiple of 64 bytes on, as kernels read it."""
    there = tensor.is_contiguous() and tensor.data_ptr() % 64 == 0
    return tensor if there else tensor.clone(memory_format=torch.contiguous_format)


def floats(kernel: Kernel, raw: Value) -> Value:
    """Sixteen stored weights as floats."""
    b, element = kernel.builder, raw.type.element
    if element == I16:  # bfloat16 is the upper half of a float
        return b.bitcast(b.shl(b.zext(raw, WORDS), words(16)), FLOATS)
    return raw if element == F32 else b.fpext(raw, FLOATS)


@lru_cache(64)
def nothing(outputs: int) -> Tensor:
    """The bias of a layer that has none."""
    return torch.zeros(outputs, dtype=torch.float32)
