"""Zeros around images."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("llvmlite")

from lightning_nm.kernels.cpu.padding import padded


@pytest.mark.parametrize("channels", [1, 15, 16, 40])
@pytest.mark.parametrize("more", [0, 16, 32])
@pytest.mark.parametrize(
    ("sizes", "padding"),
    [
        ((5,), (2,)),
        ((4, 5), (1, 2)),
        ((4, 5), (0, 1)),
        ((4, 5), (3, 0)),
        ((2, 3, 4), (1, 1, 1)),
        ((2, 3, 4), (0, 0, 0)),
    ],
)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_zeros_around(batch: int, sizes: tuple[int, ...], padding: tuple[int, ...], more: int, channels: int) -> None:
    """As torch puts them there, and behind the channels."""
    x, width = torch.randn(batch, *sizes, channels), (channels + 15) // 16 * 16 + more
    expected = torch.zeros(batch, *(size + 2 * amount for size, amount in zip(sizes, padding)), width)
    inside = tuple(slice(amount, amount + size) for size, amount in zip(sizes, padding))
    expected[(slice(None), *inside, slice(channels))] = x
    assert torch.equal(padded(x, (0, *padding), width), expected)
