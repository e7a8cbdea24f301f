"""What makes masks and applies them on a CUDA card, and whether a card does it right."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from lightning_nm.kernels import reference, transposable
from lightning_nm.kernels.bits import byte_count
from lightning_nm.kernels.transposable.layout import tiles_of, untiled
from lightning_nm.kernels.triton import split
from lightning_nm.kernels.triton.densify import densify_
from lightning_nm.kernels.triton.nm_mask import nm_mask
from lightning_nm.kernels.triton.split import nm_split_, resplit_, split_
from lightning_nm.kernels.triton.transposable import mask_2_4

__all__ = ["densify_", "mask_2_4", "nm_mask", "nm_split_", "resplit_", "self_test", "split_", "supports"]

_INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def supports(weight: Tensor) -> bool:
    """Whether there are kernels for weights of this dtype, and a card (or Triton's interpreter) under this one."""
    there = weight.device.type == "cuda" or not isinstance(split.split_units, triton.JITFunction)
    return there and weight.dtype in _INTEGER


def self_test(device: torch.device) -> str | None:
    """Why these kernels are not to be trusted on a device: they were compared with plain torch, bit for bit.

    Each is compiled here, but not for each pattern and dtype: that would take half a minute.
    """
    generator = torch.Generator(device).manual_seed(0)
    for dtype, n, m, shape in (
        (torch.float32, 2, 4, (8, 520)),
        (torch.bfloat16, 4, 8, (16, 16)),
        (torch.float16, 1, 4, (4, 12, 3)),
    ):
        weight = torch.randn(shape, device=device, generator=generator).mul_(2).round_().div_(2).to(dtype)
        whole = dtype == torch.float32
        try:
            ours = [*_split_by_triton(weight, n, m), *(_others_by_triton(weight) if whole else ())]
        except Exception as error:  # whatever a compiler or a driver may say
            return f"Triton's mask kernels do not run ({type(error).__name__}: {error})"
        theirs = [*_split_by_torch(weight, n, m), *(_others_by_torch(weight) if whole else ())]
        if not all(torch.equal(a, b) for a, b in zip(ours, theirs)):
            return f"Triton's mask kernels give other masks than plain torch for {dtype}"
    return None


def _split_by_triton(weight: Tensor, n: int, m: int) -> tuple[Tensor, ...]:
    """Split by its own mask, the sparse weight then by the mask that is there: what came of it."""
    sparse, hidden, bits, counts = _blank(weight)
    nm_split_(sparse, hidden, bits, n, m, 1, counts)
    again, rest = sparse.clone(), torch.empty_like(weight)
    resplit_(again, rest, bits, counts)
    return bits, counts, *map(_integers, (sparse, hidden, again, rest))


def _split_by_torch(weight: Tensor, n: int, m: int) -> tuple[Tensor, ...]:
    sparse, hidden, bits, counts = _blank(weight)
    counts += torch.stack(reference.nm_split_(sparse, hidden, bits, n, m, 1))
    again, rest = sparse.clone(), torch.empty_like(weight)
    counts[1] += reference.resplit_(again, rest, bits)
    return bits, counts, *map(_integers, (sparse, hidden, again, rest))


def _others_by_triton(weight: Tensor) -> tuple[Tensor, ...]:
    """Masks alone, and the way back from a weight and its hidden part."""
    dense, grad = weight.clone(), torch.zeros_like(weight)
    densify_(dense, weight, grad, 2.0, None)
    return nm_mask(weight, 2, 4, 0), mask_2_4(weight, 1, 0), *map(_integers, (dense, grad))


def _others_by_torch(weight: Tensor) -> tuple[Tensor, ...]:
    dense, grad = weight.clone(), torch.zeros_like(weight)
    reference.densify_(dense, weight, grad, 2.0, None)
    tiles = transposable.by_table(transposable.scores_of(tiles_of(weight, 4, 1, 0)), 2)
    masks = reference.nm_mask(weight, 2, 4, 0), untiled(tiles, weight.shape, 1, 0)
    return *masks, *map(_integers, (dense, grad))


def _blank(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(copy of the weight, hidden part, bits, counts), to be filled."""
    bits = torch.zeros(byte_count(weight.numel()), dtype=torch.uint8, device=weight.device)
    counts = torch.zeros(2, dtype=torch.int64, device=weight.device)
    return weight.clone(), torch.empty_like(weight), bits, counts


def _integers(floats: Tensor) -> Tensor:
    """For the signs of zeros."""
    return floats.view(_INTEGER[floats.dtype])
