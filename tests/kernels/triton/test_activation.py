"""Activations inside Triton's kernels."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels.activation import ACTIVATIONS, activated
from lightning_nm.kernels.triton.finish import finish
from tests.kernels.triton.device import DEVICE


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:overflow encountered in .*")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_against_float64(activation: str) -> None:
    """To float32's last digits, far from zero too; what is not a number stays none."""
    x = torch.cat((torch.linspace(-12, 12, 301), torch.tensor([-1e30, 1e30, torch.inf, torch.nan]))).to(DEVICE)
    out = finish(x[None, None], None, len(x), torch.float32, activation)[0]
    expected = activated(x.double(), activation).float()
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5, equal_nan=True)
