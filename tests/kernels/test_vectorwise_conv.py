"""Filters of which blocks of outputs share their inputs."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.vectorwise_conv import convolve
from lightning_nm.kernels.vectorwise_nm import pack
from lightning_nm.patterns import NM
from tests.kernels.test_vectorwise_nm import shared
from tests.kernels.triton.convolutions import exact, images


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_plain_convolution(groups: int, channels_last: bool) -> None:
    """That of torch, with activation, in the memory format of x."""
    convolution = Convolution((3, 2), (2, 1), (1, 0), (1, 2), groups)
    rows = shared(128, 6 * 16, NM(1, 4, vector=64), torch.float16)
    x, bias = images((2, 16 * groups, 7, 5), torch.float16, channels_last), torch.randn(128).half()
    out = convolve(x, *pack(rows, 64), bias, 128, convolution, "silu")
    expected = torch.nn.functional.silu(exact(x, rows, bias, convolution))
    torch.testing.assert_close(out.double(), expected, atol=0.02, rtol=0.01)
    assert out.is_contiguous() != channels_last
