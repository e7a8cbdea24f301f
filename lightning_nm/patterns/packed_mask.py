"""A mask at one bit per weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_nm.kernels import byte_count, pack_bits, popcount, unpack_bits


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A bool mask of ``shape`` as uint8 ``bits`` ``[ceil(numel / 8)]``, row-major, low bit first."""

    bits: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        if self.bits.dtype != torch.uint8 or self.bits.shape != (byte_count(self.shape.numel()),):
            raise ValueError(
                f"a packed mask of shape {tuple(self.shape)} takes {byte_count(self.shape.numel())} bytes (uint8), "
                f"got {self.bits.dtype} of shape {tuple(self.bits.shape)}"
            )

    @classmethod
    def pack(cls, mask: Tensor) -> PackedMask:
        """Pack a bool mask; ValueError for any other dtype."""
        if mask.dtype != torch.bool:
            raise ValueError(f"a mask is a bool tensor (True = kept), got {mask.dtype} of shape {tuple(mask.shape)}")
        return cls(pack_bits(mask), mask.shape)

    @classmethod
    def empty(cls, weight: Tensor) -> PackedMask:
        """Nothing kept, for a weight: to be filled by a split."""
        bits = torch.zeros(byte_count(weight.numel()), dtype=torch.uint8, device=weight.device)
        return cls(bits, weight.shape)

    def unpack(self) -> Tensor:
        return unpack_bits(self.bits, self.shape)

    def clone(self) -> PackedMask:
        return PackedMask(self.bits.clone(), self.shape)

    def to(self, device: torch.device) -> PackedMask:
        return PackedMask(self.bits.to(device), self.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def kept(self) -> Tensor:
        """Number of kept entries, an int64 scalar on the mask's device."""
        return popcount(self.bits)

    def distance(self, other: PackedMask) -> Tensor:
        """Number of entries in which two masks differ, an int64 scalar on the mask's device."""
        if self.shape != other.shape:
            raise ValueError(f"masks of shapes {tuple(self.shape)} and {tuple(other.shape)} cannot be compared")
        return popcount(self.bits ^ other.bits.to(self.bits.device))
