"""Kernels: they know tensors only. Each call goes to the fastest implementation that is there.

Every implementation gives the same masks, bits and counts as `lightning_nm.kernels.reference`, for finite
weights. Where NaN or infinity is met it is counted, and the mask of its group means nothing.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lightning_nm.kernels import bits as reference_bits
from lightning_nm.kernels import packed_blocks, packed_nm, reference, transposable
from lightning_nm.kernels.bits import byte_count, pack_bits, unpack_bits
from lightning_nm.kernels.convolution import Convolution, filters, memory_format
from lightning_nm.kernels.reference import decay_
from lightning_nm.kernels.solvers import SOLVERS, default_solver, solve
from lightning_nm.kernels.transposable.layout import tiles_of, untiled
from lightning_nm.kernels.units import held_units, largest, unit_norms

__all__ = [
    "SOLVERS",
    "block_convolution",
    "block_matmul",
    "byte_count",
    "compiled_cpu",
    "decay_",
    "densify_",
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
        from lightning_nm.kernels.triton import masks
    except ImportError:
        return None
    if reason := masks.self_test(device):
        warnings.warn(f"{device}: {reason}; masks are made by plain torch, more slowly", stacklevel=2)
        return None
    return masks


def nm_mask(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """True at the ``n`` largest magnitudes of every ``m`` consecutive entries along ``dim``.

    Ties go to the lowest index. ``weight.shape[dim]`` must be a multiple of ``m``.
    """
    cuda = _cuda_for(weight)
    mask: Tensor = (reference if cuda is None else cuda).nm_mask(weight, n, m, dim)
    return mask


def popcount(bits: Tensor) -> Tensor:
    """Number of set bits of a uint8 tensor, an int64 scalar on its device (no synchronisation)."""
    cpu = compiled_cpu() if bits.device.type == "cpu" and bits.is_contiguous() else None
    return reference_bits.popcount(bits) if cpu is None else torch.tensor(cpu.popcount(bits))


def _compiled_for(weight: Tensor, hidden: Tensor | None) -> ModuleType | None:
    if weight.device.type != "cpu" or (hidden is not None and hidden.dtype != weight.dtype):
        return None
    cpu = compiled_cpu()
    return cpu if cpu is not None and cpu.supports(weight) else None


def _cuda_for(weight: Tensor, *others: Tensor | None) -> ModuleType | None:
    if weight.device.type != "cuda" or any(t is not None and t.dtype != weight.dtype for t in others):
        return None
    cuda = compiled_cuda(weight.device)
    return cuda if cuda is not None and cuda.supports(weight) else None


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
    weight: Tensor, hidden: Tensor | None, bits: Tensor, n: int, m: int, dim: int, counts: Tensor | None = None
) -> tuple[int | Tensor, int | Tensor]:
    """Split ``weight`` by its own N:M mask along ``dim``, in place.

    Args:
        weight: dense weight, any shape; becomes the sparse one.
        hidden: like ``weight``; becomes what the mask removed (-0.0 where kept). None drops it.
        bits: uint8 ``[ceil(numel / 8)]``, the packed mask before; becomes the mask after.
        counts: int64 ``[2]`` on the weight's device, to count on from. On a GPU that takes no launch.

    Returns:
        (entries whose mask changed, entries that are NaN or infinite), added to ``counts``: integers on a
        CPU, int64 scalars elsewhere, so that nothing waits for a GPU.

    Raises:
        ValueError: ``bits`` or ``hidden`` are not made for this weight.
    """
    return _split("nm_split_", weight, hidden, bits, counts, n, m, dim)


def split_(
    weight: Tensor, hidden: Tensor | None, bits: Tensor, mask: Tensor, counts: Tensor | None = None
) -> tuple[int | Tensor, int | Tensor]:
    """Split ``weight`` by a mask of its shape, in place: see `nm_split_`."""
    return _split("split_", weight, hidden, bits, counts, mask)


def resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor, counts: Tensor | None = None) -> int | Tensor:
    """Split ``weight`` by the mask in ``bits``, in place; returns the number of non-finite entries: see `nm_split_`.

    With ``hidden=None`` it zeroes what the mask removes: frozen weights, masked gradients.
    """
    return _split("resplit_", weight, hidden, bits, counts)[1]


def _split(
    name: str, weight: Tensor, hidden: Tensor | None, bits: Tensor, counts: Tensor | None, *how: Any
) -> tuple[int | Tensor, int | Tensor]:
    _check(weight, hidden, bits)
    weight = weight.detach()
    if (cuda := _cuda_for(weight, hidden)) is not None:
        counts = torch.zeros(2, dtype=torch.int64, device=weight.device) if counts is None else counts
        getattr(cuda, name)(weight, hidden, bits, *how, counts)
        return counts[0], counts[1]
    cpu = None if name == "split_" else _compiled_for(weight, hidden)
    found = getattr(reference if cpu is None else cpu, name)(weight, hidden, bits, *how)
    flips, nonfinite = found if isinstance(found, tuple) else (0, found)
    if counts is None:
        return _number(flips), _number(nonfinite)
    counts[0] += flips
    counts[1] += nonfinite
    return counts[0], counts[1]


def _number(count: int | Tensor) -> int | Tensor:
    """An integer where that waits for nothing: on a CPU."""
    return int(count) if isinstance(count, Tensor) and count.device.type == "cpu" else count


def densify_(weight: Tensor, hidden: Tensor, grad: Tensor, factor: float, scale: Tensor | None = None) -> None:
    """Before an update, in place: ``grad += factor * scale * hidden`` and ``weight += hidden``.

    Args:
        weight: the sparse weight.
        hidden: what a split removed from it.
        grad: like ``weight``.
        factor: lambda, say.
        scale: factor still on the gradient; None: 1.
    """
    cuda = _cuda_for(weight, hidden, grad)
    if cuda is not None and not _lie_alike(weight, hidden, grad):
        cuda = None
    (reference if cuda is None else cuda).densify_(weight, hidden, grad, factor, scale)


def _lie_alike(first: Tensor, *others: Tensor) -> bool:
    """Whether the tensors fill their memory in the same order."""
    return first.is_contiguous(memory_format=memory_format(first)) and all(
        other.shape == first.shape and other.stride() == first.stride() for other in others
    )


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
    if (n, m, at_most) == (2, 4, False) and solver in (None, "exact") and (cuda := _cuda_for(weight)) is not None:
        return cuda.mask_2_4(weight, inputs, outputs)  # type: ignore[no-any-return]
    tiles = tiles_of(weight.detach(), m, inputs, outputs)
    cpu = compiled_cpu() if weight.device.type == "cpu" else None
    stages = transposable if cpu is None else cpu.transposable
    parts = torch.split(tiles, max(1, _ENTRIES_AT_ONCE // (m * m)))
    masks = [solve(part, n, solver or default_solver(m), at_most=at_most, stages=stages) for part in parts]
    return untiled(torch.cat(masks), weight.shape, inputs, outputs)
