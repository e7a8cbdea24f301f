"""The sum of the parts of a product."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels.activation import activated
from lightning_nm.kernels.triton.finish import finish
from tests.kernels.triton.device import DEVICE


@pytest.mark.gpu
@pytest.mark.parametrize(("parts", "batch", "filled", "outputs"), [(1, 1, 5, 5), (3, 2, 640, 600), (2, 9, 64, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("with_bias", "activation"), [(False, "none"), (True, "silu")])
def test_against_torch(
    parts: int, batch: int, filled: int, outputs: int, dtype: torch.dtype, with_bias: bool, activation: str
) -> None:
    """Rounded once, at the end; what fills up is left out."""
    torch.manual_seed(0)
    held = torch.randn(parts, batch, filled, device=DEVICE)
    bias = torch.randn(outputs, device=DEVICE).to(dtype) if with_bias else None
    out = finish(held, bias, outputs, dtype, activation)
    expected = activated(held.double().sum(0)[:, :outputs] + (0 if bias is None else bias.double()), activation)
    assert out.shape == (batch, outputs)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=torch.finfo(dtype).eps)
