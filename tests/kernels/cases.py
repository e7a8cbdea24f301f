"""Weights that try the kernels: ties at the cut, both zeros, and every finite float there is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

st = pytest.importorskip("hypothesis.strategies")  # who imports these cases is skipped without

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
PATTERNS = [(2, 4), (1, 4), (4, 8), (2, 8), (1, 16), (8, 16), (3, 7), (1, 1), (5, 5)]
KINDS = ["normal", "ties", "any"]

seeds = st.integers(0, 2**31 - 1)
kinds = st.sampled_from(KINDS)


def weight_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """A finite weight: Gaussian, of a few magnitudes with signed zeros, or of any bits at all."""
    random = torch.Generator().manual_seed(seed)
    if kind == "normal":
        return torch.randn(shape, generator=random).to(dtype)
    if kind == "ties":
        magnitude = torch.randint(0, 3, shape, generator=random).to(dtype)
        return magnitude.copysign(torch.randn(shape, generator=random))
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(integer)
    weight = torch.randint(info.min, info.max, shape, dtype=integer, generator=random).view(dtype)
    return torch.where(weight.isfinite(), weight, -0.0)


@st.composite
def shapes(draw: st.DrawFn, m: int) -> tuple[tuple[int, ...], int]:
    """(a Linear, Conv1d, Conv2d or Conv3d shape, a dimension that groups of ``m`` fit in)."""
    dim = draw(st.integers(0, 1))
    sizes = [draw(st.integers(1, 5)), draw(st.integers(1, 5))]
    sizes[dim] = m * draw(st.integers(1, 3))
    taps = draw(st.lists(st.integers(1, 3), max_size=3))
    return (*sizes, *taps), dim
