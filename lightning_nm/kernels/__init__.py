"""Kernels: they know tensors only. Each call goes to the fastest implementation that is there.

Every implementation gives the same masks, bits and counts as `lightning_nm.kernels.reference`, for finite
weights. Where NaN or infinity is met it is counted, and the mask of its group means nothing.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from lightning_nm.kernels import bits as reference_bits
from lightning_nm.kernels import packed_blocks, packed_nm, reference, transposable
from lightning_nm.kernels.bits import byte_count, pack_bits, unpack_bits
from lightning_nm.kernels.convolution import Convolution, filters, memory_format
from lightning_nm.kernels.solvers import SOLVERS, default_solver, solve
from lightning_nm.kernels.transposable.layout import tiles_of, untiled
from lightning_nm.kernels.units import held_units, largest, unit_norms

__all__ = [
    "SOLVERS",
    "block_convolution",
    "block_matmul",
    "byte_count",
    "compiled_cpu",
    "held_units",
    "largest",
    "nm_convolution",
    "nm_mask",
    "nm_matmul",
    "nm_pack",
    "nm_split_",
    "pack_bits",
    "popcount",
    "resplit_",
    "split_",
    "transposable_mask",
    "unit_norms",
    "unpack_bits",
]

nm_mask = reference.nm_mask


@cache
def compiled_cpu() -> ModuleType | None:
    """The compiled CPU kernels, imported at the first call; None where numba is missing or does not import."""
    try:
        from lightning_nm.kernels import cpu
    except ImportError:
        return None
    return cpu


@cache
def compiled_cuda(device: torch.device) -> ModuleType | None:
    """The mask kernels for a CUDA card; None where triton is missing, or they do not equal the reference there."""
    try:
        from lightning_nm.kernels.triton import split
    except ImportError:
        return None
    if reason := split.self_test(device):
        warnings.warn(f"{device}: {reason}; masks are made by plain torch, more slowly", stacklevel=2)
        return None
    return split


def popcount(bits: Tensor) -> Tensor:
    """Number of set bits of a uint8 tensor, an int64 scalar on its device (no synchronisation)."""
    cpu = compiled_cpu() if bits.device.type == "cpu" and bits.is_contiguous() else None
    return reference_bits.popcount(bits) if cpu is None else torch.tensor(cpu.popcount(bits))


def _compiled_for(weight: Tensor, hidden: Tensor | None) -> ModuleType | None:
    if weight.device.type != "cpu" or (hidden is not None and hidden.dtype != weight.dtype):
        return None
    cpu = compiled_cpu()
    return cpu if cpu is not None and cpu.supports(weight) else None


def _mask_kernels(weight: Tensor, hidden: Tensor | None) -> ModuleType:
    """Whose `nm_split_` and `resplit_` do this weight."""
    compiled: ModuleType | None = _compiled_for(weight, hidden)
    alike = hidden is None or hidden.dtype == weight.dtype
    if weight.device.type == "cuda" and alike and (cuda := compiled_cuda(weight.device)) is not None:
        compiled = cuda if cuda.supports(weight) else None
    return reference if compiled is None else compiled


def _check(weight: Tensor, hidden: Tensor | None, bits: Tensor) -> None:
    """The compiled kernels write where they are told to: refuse what does not fit."""
    if bits.dtype != torch.uint8 or bits.shape != (byte_count(weight.numel()),):
        raise ValueError(
            f"the mask of a weight of shape {tuple(weight.shape)} takes {byte_count(weight.numel())} uint8 bytes, "
            f"got {bits.dtype} of shape {tuple(bits.shape)}"
        )
    if hidden is not None and hidden.shape != weight.shape:
        raise ValueError(f"a hidden part of shape {tuple(hidden.shape)} for a weight of shape {tuple(weight.shape)}")


def nm_split_(
    weight: Tensor, hidden: Tensor | None, bits: Tensor, n: int, m: int, dim: int
) -> tuple[int | Tensor, int | Tensor]:
    """Split ``weight`` by its own N:M mask along ``dim``, in place.

    Args:
        weight: dense weight, any shape; becomes the sparse one.
        hidden: like ``weight``; becomes what the mask removed (-0.0 where kept). None drops it.
        bits: uint8 ``[ceil(numel / 8)]``, the packed mask before; becomes the mask after.

    Returns:
        (entries whose mask changed, entries that are NaN or infinite): integers on a CPU, int64
        scalars elsewhere, so that nothing waits for a GPU.

    Raises:
        ValueError: ``bits`` or ``hidden`` are not made for this weight.
    """
    _check(weight, hidden, bits)
    flips, nonfinite = _mask_kernels(weight, hidden).nm_split_(weight.detach(), hidden, bits, n, m, dim)
    return _number(flips), _number(nonfinite)


def split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, mask: Tensor) -> tuple[int | Tensor, int | Tensor]:
    """Split ``weight`` by a mask of its shape, in place: see `nm_split_`."""
    _check(weight, hidden, bits)
    flips, nonfinite = reference.split_(weight.detach(), hidden, bits, mask)
    return _number(flips), _number(nonfinite)


def resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor) -> int | Tensor:
    """Split ``weight`` by the mask in ``bits``, in place; returns the number of non-finite entries.

    With ``hidden=None`` it zeroes what the mask removes: frozen weights, masked gradients.
    """
    _check(weight, hidden, bits)
    return _number(_mask_kernels(weight, hidden).resplit_(weight.detach(), hidden, bits))


def _number(count: int | Tensor) -> int | Tensor:
    """An integer where that waits for nothing: on a CPU."""
    return int(count) if isinstance(count, Tensor) and count.device.type == "cpu" else count


_ENTRIES_AT_ONCE = 1 << 20  # bounds the memory of the plain torch solvers


def nm_pack(rows: Tensor, n: int, layout: packed_nm.Layout) -> tuple[Tensor, Tensor] | int:
    """Pack a matrix ``[O, I]`` of which every group of M holds N weights at most (`lightning_nm.kernels.packed_nm`).

    Where it holds fewer, zeros that are -0 are packed too, then others from the left.

    Returns:
        (values, positions), or the first group, counted through all rows, that holds more than N.
    """
    cpu = _compiled_for(rows, None)
    if cpu is not None:
        return cpu.nm_pack.pack(rows, n, layout)  # type: ignore[no-any-return]
    wrong = (rows.unflatten(1, (-1, layout.group)) != 0).sum(2) > n  # type: ignore[no-untyped-call]
    if bool(wrong.any()):
        return int(wrong.flatten().nonzero()[0])
    ranks = torch.where(rows != 0, 2.0, rows.signbit().float())
    return packed_nm.pack(rows, nm_mask(ranks, n, layout.group, 1), layout)


def nm_matmul(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, layout: packed_nm.Layout, outputs: int
) -> Tensor:
    """``x @ W^T + bias`` of x ``[B, I]`` and packed N:M weights (`lightning_nm.kernels.packed_nm`)."""
    cpu = _compiled_for(x, None)
    out: Tensor | None = None if cpu is None else cpu.packed.nm_linear(x, values, positions, bias, layout, outputs)
    return packed_nm.matmul(x, values, positions, bias, layout, outputs) if out is None else out


def block_matmul(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ W^T + bias`` of x ``[B, I]`` and packed 1xN weights (`lightning_nm.kernels.packed_blocks`)."""
    cpu = _compiled_for(x, None)
    out: Tensor | None = None if cpu is None else cpu.packed.block_linear(x, values, inputs, starts, bias)
    return packed_blocks.matmul(x, values, inputs, starts, bias) if out is None else out


def nm_convolution(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    layout: packed_nm.Layout,
    outputs: int,
    convolution: Convolution,
) -> Tensor:
    """The convolution of x ``[B, C, *sizes]`` with packed N:M filters, seen as ``[O, T * C / groups]``.

    The result has the memory format of x.
    """
    if (cpu := _compiled_for(x, None)) is not None:
        out: Tensor | None = cpu.packed.nm_convolution(x, values, positions, bias, layout, outputs, convolution)
        if out is not None:
            return out
    weight = filters(packed_nm.unpack(values, positions, layout, outputs).to(x.dtype), convolution.kernel)
    return convolution.dense(x, weight, bias).contiguous(memory_format=memory_format(x))


def block_convolution(
    x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None, convolution: Convolution
) -> Tensor:
    """The convolution of x ``[B, C, *sizes]`` with packed 1xN filters, values ``[blocks, T, N]``.

    The result has the memory format of x.
    """
    if (cpu := _compiled_for(x, None)) is not None:
        out: Tensor | None = cpu.packed.block_convolution(x, values, inputs, starts, bias, convolution)
        if out is not None:
            return out
    rows = packed_blocks.unpack(values.flatten(1), inputs, starts, x.shape[1] // convolution.groups)
    n, taps = values.shape[2], values.shape[1]  # rows: [O / N * T * N, I]
    weight = rows.view(-1, taps, n, rows.shape[1]).transpose(1, 2).reshape(-1, taps * rows.shape[1]).to(x.dtype)
    return convolution.dense(x, filters(weight, convolution.kernel), bias).contiguous(memory_format=memory_format(x))


def transposable_mask(
    weight: Tensor, n: int, m: int, inputs: int, outputs: int, solver: str | None = None, at_most: bool = False
) -> Tensor:
    """True at ``n`` entries of every row and every column of each ``m`` x ``m`` tile, of largest magnitude.

    Args:
        weight: any shape, whose dimensions ``inputs`` and ``outputs`` are multiples of ``m``.
        inputs: the dimension that the GEMM sums over.
        outputs: the other one.
        solver: one of `SOLVERS`; None: exact for M up to 16, entropic above.
        at_most: ``n`` entries at most.

    Raises:
        ImportError: ``solver="flow"`` without OR-tools.
    """
    inputs, outputs = inputs % weight.dim(), outputs % weight.dim()
    tiles = tiles_of(weight.detach(), m, inputs, outputs)
    cpu = compiled_cpu() if weight.device.type == "cpu" else None
    stages = transposable if cpu is None else cpu.transposable
    parts = torch.split(tiles, max(1, _ENTRIES_AT_ONCE // (m * m)))
    masks = [solve(part, n, solver or default_solver(m), at_most=at_most, stages=stages) for part in parts]
    return untiled(torch.cat(masks), weight.shape, inputs, outputs)
