"""Which entries of a group are kept, decided in registers."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from lightning_nm.kernels import reference
from lightning_nm.kernels.triton.selection import decided
from tests.kernels.triton.device import DEVICE

BLOCK = 32


@triton.jit
def kernel(x_ptr, kept_ptr, removed_ptr, N: tl.constexpr, M: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK) * M
    entries = ()
    for i in tl.static_range(M):
        entries = entries + (tl.load(x_ptr + at + i),)  # noqa: RUF005 - Triton unpacks no tuples into others
    found = decided(entries, 0, N, M)
    for i in tl.static_range(M):
        tl.store(kept_ptr + at + i, found[i].to(tl.uint8))
        tl.store(removed_ptr + at + i, found[M + i].to(tl.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 2), (2, 3), (2, 4), (3, 5), (1, 6), (4, 7), (3, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_the_reference(n: int, m: int, dtype: torch.dtype) -> None:
    """Ties and zeros of both signs; of what is removed, that which is no zero."""
    torch.manual_seed(n * m)
    x = (torch.randn(BLOCK, m) * 2).round().div(2).to(dtype)
    x[::3] *= -0.0
    expected = reference.nm_mask(x, n, m, 1)
    integers = x.view(torch.int32 if dtype == torch.float32 else torch.int16).to(DEVICE)
    kept, removed = (torch.empty(BLOCK, m, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    kernel[(1,)](integers, kept, removed, N=n, M=m, BLOCK=BLOCK)
    assert torch.equal(kept.bool().cpu(), expected)
    assert torch.equal(removed.bool().cpu(), ~expected & (x != 0))
