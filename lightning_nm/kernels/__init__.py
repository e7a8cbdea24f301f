"""Kernels: they know tensors only. Each call goes to the fastest implementation that is there.

Every implementation gives the same masks, bits and counts as `lightning_nm.kernels.reference`.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from lightning_nm.kernels import reference
from lightning_nm.kernels.bits import byte_count, pack_bits, popcount, unpack_bits

__all__ = [
    "byte_count",
    "compiled_cpu",
    "nm_mask",
    "nm_split_",
    "pack_bits",
    "popcount",
    "resplit_",
    "unpack_bits",
]

nm_mask = reference.nm_mask


@cache
def compiled_cpu() -> ModuleType | None:
    """The compiled CPU kernels, imported at the first call; None where numba is not installed."""
    if find_spec("numba") is None:
        return None
    from lightning_nm.kernels.cpu import split

    return split


def _compiled_for(weight: Tensor, hidden: Tensor | None) -> ModuleType | None:
    if weight.device.type != "cpu":
        return None
    cpu = compiled_cpu()
    if cpu is None or not cpu.supports(weight) or (hidden is not None and not cpu.supports(hidden)):
        return None
    return cpu


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
    """
    cpu = _compiled_for(weight, hidden)
    kernel = reference.nm_split_ if cpu is None else cpu.nm_split_
    return kernel(weight, hidden, bits, n, m, dim)


def resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor) -> int | Tensor:
    """Split ``weight`` by the mask in ``bits``, in place; returns the number of non-finite entries.

    With ``hidden=None`` it zeroes what the mask removes: frozen weights, masked gradients.
    """
    cpu = _compiled_for(weight, hidden)
    kernel = reference.resplit_ if cpu is None else cpu.resplit_
    return kernel(weight, hidden, bits)
