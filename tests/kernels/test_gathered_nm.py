"""The layout for products that gather their inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_nm.kernels import nm_mask
from lightning_nm.kernels.gathered_nm import Layout, matmul, pack, unpack

PATTERNS = [(2, 4), (1, 4), (2, 8), (1, 8), (4, 8), (1, 16), (8, 16), (3, 7), (1, 32)]


def sparse(outputs: int, inputs: int, n: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(rows, mask)"""
    torch.manual_seed(0)
    rows = torch.randn(outputs, inputs).to(dtype)
    mask = nm_mask(rows, n, m, 1)
    return torch.where(mask, rows, 0.0), mask


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("outputs", "groups"), [(5, 37), (1, 1), (16, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_round_trip(n: int, m: int, outputs: int, groups: int, dtype: torch.dtype) -> None:
    """Bit for bit, and the plain product of it."""
    rows, mask = sparse(outputs, groups * m, n, m, dtype)
    layout = Layout.of(n, m, groups * m)
    assert layout is not None
    positions, values = pack(rows, mask, layout)
    assert positions.is_contiguous()
    assert values.is_contiguous()  # kernels read them as they lie
    assert torch.equal(unpack(positions, values, layout, dtype).view(torch.int16), rows.view(torch.int16))
    x = torch.randn(2, groups * m).to(dtype)
    assert torch.equal(matmul(x, positions, values, None, layout), x @ rows.T)


@pytest.mark.parametrize(("n", "m", "share"), [(2, 4, 0.5625), (1, 4, 0.2813), (1, 16, 0.0781), (8, 16, 0.625)])
def test_bytes(n: int, m: int, share: float) -> None:
    """Of the dense bfloat16 weight, at a size that fills whole chunks."""
    layout = Layout.of(n, m, 8192)
    assert layout is not None
    assert layout.filled == 8192
    assert layout.chunks * layout.words * (1 + layout.pairs) * 4 / (8192 * 2) == pytest.approx(share, rel=0.01)


def test_positions_that_fit_no_word() -> None:
    """Such a pattern has no layout."""
    assert Layout.of(16, 32, 1024) is None
