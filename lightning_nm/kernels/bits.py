"""Masks at one bit per weight: pack, unpack, count.

Bit ``e % 8`` of byte ``e // 8`` is entry ``e`` of the mask in row-major order, whatever the
memory format of the weight, so packed masks of one shape can always be compared byte by byte.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _places(device: torch.device) -> Tensor:
    """Powers of two 1..128, uint8 ``[8]``, made on the device: a copy from the host would wait for it."""
    return torch.ones(8, dtype=torch.uint8, device=device) << torch.arange(8, dtype=torch.uint8, device=device)


def byte_count(numel: int) -> int:
    """Bytes that ``numel`` bits take."""
    return (numel + 7) // 8


def pack_bits(mask: Tensor) -> Tensor:
    """Bool mask of any shape -> uint8 ``[ceil(numel / 8)]``; spare bits are 0."""
    flat = mask.reshape(-1)
    spare = -flat.numel() % 8
    if spare:
        flat = torch.cat([flat, flat.new_zeros(spare)])
    # [bytes, 8] * [8] -> [bytes]; a sum of distinct powers of two never overflows a byte
    return (flat.view(-1, 8) * _places(mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    """uint8 ``[ceil(numel / 8)]`` -> bool mask of ``shape``."""
    flat = (bits.unsqueeze(1) & _places(bits.device)).ne_(0).bool().view(-1)
    return flat[: shape.numel()].view(shape)


def popcount(bits: Tensor) -> Tensor:
    """Number of set bits of a uint8 tensor, an int64 scalar on its device (no synchronisation)."""
    x = bits - ((bits >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    return ((x + (x >> 4)) & 0x0F).sum(dtype=torch.int64)
