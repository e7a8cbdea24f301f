"""Tiles in registers, taken apart and put together."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from lightning_nm.kernels.triton.registers import columns, ones, tile
from tests.kernels.triton.device import DEVICE

pytestmark = pytest.mark.gpu


@triton.jit
def apart_and_together(x_ptr, first_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    apart = columns(tl.load(x_ptr + at), WIDTH, BLOCK)
    for i in tl.static_range(WIDTH):
        tl.store(first_ptr + i * BLOCK + tl.arange(0, BLOCK), apart[i])
    tl.store(out_ptr + at, tile(apart, WIDTH, BLOCK))


@triton.jit
def counted(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, ones(tl.load(x_ptr + at)))


@pytest.mark.parametrize("width", [2, 4, 8])
def test_columns_and_tile(width: int) -> None:
    """Each column by itself, and the very tile again."""
    x = torch.arange(32 * width, dtype=torch.int32, device=DEVICE).view(32, width)
    apart, together = torch.empty_like(x.T).contiguous(), torch.empty_like(x)
    apart_and_together[(1,)](x, apart, together, WIDTH=width, BLOCK=32)
    assert torch.equal(apart, x.T)
    assert torch.equal(together, x)


def test_ones() -> None:
    """Set bits of any word, the sign among them."""
    words = torch.tensor([0, 1, -1, -(2**31), 2**31 - 1, 0x0F0F0F0F, 5, -2], dtype=torch.int32, device=DEVICE)
    out = torch.empty_like(words)
    counted[(1,)](words, out, BLOCK=8)
    assert out.tolist() == [bin(word & 0xFFFFFFFF).count("1") for word in words.tolist()]
