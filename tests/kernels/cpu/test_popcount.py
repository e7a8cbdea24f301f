"""Counting bits by the processor's instruction."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.kernels import bits as reference
from lightning_nm.kernels.cpu.popcount import popcount


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1003])
def test_equals_the_reference(size: int) -> None:
    """Whole words, and the bytes that are left over."""
    packed = torch.randint(0, 256, (size,), dtype=torch.uint8)
    assert popcount(packed) == int(reference.popcount(packed)) == sum(bin(byte).count("1") for byte in packed.tolist())


def test_all_bits_set() -> None:
    """Nothing overflows."""
    assert popcount(torch.full((4096,), 255, dtype=torch.uint8)) == 8 * 4096
