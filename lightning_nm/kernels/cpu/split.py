"""The splits of `lightning_nm.kernels.reference`, compiled by numba: same masks, ties and bits.

One thread: reading the weight and writing two arrays already fills the memory bus, and a second
thread pool beside torch's would only fight it for the cores. Each (pattern, dtype) is compiled at
first use, about half a second, and kept for the life of the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from lightning_nm.kernels.cpu.lanes import LANES, split_step

# dtype -> (integer view in torch, in numpy, bits of +inf)
_AS_INTEGER: dict[torch.dtype, tuple[torch.dtype, Any, int]] = {
    torch.float16: (torch.int16, np.uint16, 0x7C00),
    torch.bfloat16: (torch.int16, np.uint16, 0x7F80),
    torch.float32: (torch.int32, np.uint32, 0x7F800000),
    torch.float64: (torch.int64, np.uint64, 0x7FF0000000000000),
}


def supports(tensor: Tensor) -> bool:
    """Whether these kernels know the dtype of ``tensor``."""
    return tensor.dtype in _AS_INTEGER


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    torch_int, numpy_uint, _ = _AS_INTEGER[tensor.dtype]
    return tensor.detach().view(-1).view(torch_int).numpy().view(numpy_uint)


@cache
def _run_lanes(dtype: torch.dtype, nm: tuple[int, int] | None, with_hidden: bool) -> Callable[..., tuple[int, int]]:
    """Whole vectors of 16: groups lie along the last dimension and divide 16, or the mask is given."""
    width = dtype.itemsize * 8
    step = split_step(width, _AS_INTEGER[dtype][2], nm, with_hidden)

    @njit(nogil=True)
    def run(weight, hidden, bits, end):  # type: ignore[no-untyped-def]
        flips = 0
        nonfinite = 0
        for start in range(0, end, LANES):
            counts = step(weight, hidden, bits, start)
            flips += counts & 0xFFFF
            nonfinite += counts >> 16
        return flips, nonfinite

    return run


@cache
def _run_scalar(dtype: torch.dtype, n: int, m: int, with_hidden: bool) -> Callable[..., tuple[int, int]]:
    """Any group size and stride, entries of a group ``stride`` apart; and fp64, which has no lanes."""
    _, uint, infinity_bits = _AS_INTEGER[dtype]
    sign = uint(1 << (dtype.itemsize * 8 - 1))
    magnitude, infinity, zero = uint(sign - uint(1)), uint(infinity_bits), uint(0)

    @njit(nogil=True)
    def run(weight, hidden, bits, begin, end, stride):  # type: ignore[no-untyped-def]
        flips = 0
        nonfinite = 0
        keys = np.empty(m, weight.dtype)
        for block in range(begin, end, m * stride):
            for column in range(stride):
                base = block + column
                for j in range(m):
                    keys[j] = weight[base + j * stride] & magnitude
                    nonfinite += keys[j] >= infinity
                for j in range(m):
                    rank = 0
                    for i in range(j):
                        rank += keys[i] >= keys[j]
                    for i in range(j + 1, m):
                        rank += keys[i] > keys[j]
                    at = base + j * stride
                    keep = rank < n
                    raw = weight[at]
                    if with_hidden:
                        hidden[at] = sign if keep else raw
                    if not keep and keys[j] != zero:
                        weight[at] = zero
                    if keep != ((bits[at >> 3] >> (at & 7)) & 1):
                        bits[at >> 3] ^= 1 << (at & 7)
                        flips += 1
        return flips, nonfinite

    return run


@cache
def _run_given(dtype: torch.dtype, with_hidden: bool) -> Callable[..., int]:
    """Entry by entry with the mask in ``bits``: what is left over after whole vectors, and fp64."""
    _, uint, infinity_bits = _AS_INTEGER[dtype]
    sign = uint(1 << (dtype.itemsize * 8 - 1))
    magnitude, infinity, zero = uint(sign - uint(1)), uint(infinity_bits), uint(0)

    @njit(nogil=True)
    def run(weight, hidden, bits, begin, end):  # type: ignore[no-untyped-def]
        nonfinite = 0
        for at in range(begin, end):
            raw = weight[at]
            key = raw & magnitude
            nonfinite += key >= infinity
            keep = (bits[at >> 3] >> (at & 7)) & 1
            if with_hidden:
                hidden[at] = sign if keep else raw
            if not keep and key != zero:
                weight[at] = zero
        return nonfinite

    return run


def _nm_split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, n: int, m: int, dim: int) -> tuple[int, int]:
    # not weight.stride(dim): a dimension of size 1 may have any
    stride = math.prod(weight.shape[dim % weight.dim() + 1 :])
    numel = weight.numel()
    whole = numel // LANES * LANES if stride == 1 and LANES % m == 0 and weight.dtype.itemsize <= 4 else 0
    arrays = _array(weight), _array(weight if hidden is None else hidden), bits.numpy()
    flips = nonfinite = 0
    if whole:
        flips, nonfinite = _run_lanes(weight.dtype, (n, m), hidden is not None)(*arrays, whole)
    if whole < numel:
        more = _run_scalar(weight.dtype, n, m, hidden is not None)(*arrays, whole, numel, stride)
        flips, nonfinite = flips + more[0], nonfinite + more[1]
    return flips, nonfinite


def _resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor) -> int:
    numel = weight.numel()
    whole = numel // LANES * LANES if weight.dtype.itemsize <= 4 else 0
    arrays = _array(weight), _array(weight if hidden is None else hidden), bits.numpy()
    nonfinite = 0
    if whole:
        nonfinite = _run_lanes(weight.dtype, None, hidden is not None)(*arrays, whole)[1]
    if whole < numel:
        nonfinite += _run_given(weight.dtype, hidden is not None)(*arrays, whole, numel)
    return nonfinite


def _on_contiguous(kernel: Callable[..., Any], weight: Tensor, hidden: Tensor | None, bits: Tensor, *args: int) -> Any:
    """Run ``kernel`` on row-major tensors, through copies where they are not (channels_last)."""
    if weight.is_contiguous() and (hidden is None or hidden.is_contiguous()):
        return kernel(weight, hidden, bits, *args)
    rows = weight.contiguous()
    removed = None if hidden is None else torch.empty_like(rows)
    counts = kernel(rows, removed, bits, *args)
    # the hidden part first: broken off in between, the weight is still whole
    if hidden is not None and removed is not None:
        hidden.copy_(removed)
    weight.copy_(rows)
    return counts


def nm_split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, n: int, m: int, dim: int) -> tuple[int, int]:
    """Compiled `reference.nm_split_`; returns (flips, nonfinite) as integers."""
    counts: tuple[int, int] = _on_contiguous(_nm_split_, weight, hidden, bits, n, m, dim)
    return counts


def resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor) -> int:
    """Compiled `reference.resplit_`; returns the number of non-finite entries."""
    nonfinite: int = _on_contiguous(_resplit_, weight, hidden, bits)
    return nonfinite
