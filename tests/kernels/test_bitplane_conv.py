"""Filters with positions in bit planes."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.kernels import bitplane_nm
from lightning_nm.kernels.bitplane_conv import convolve, filled, fits, pack, unpack
from lightning_nm.kernels.convolution import Convolution
from tests.kernels.test_gathered_nm import sparse
from tests.kernels.triton.convolutions import exact, images


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 8), (2, 16)])
@pytest.mark.parametrize("groups", [1, 37])
def test_round_trip(n: int, m: int, groups: int) -> None:
    """Bit for bit; what a kernel takes at once is of one tap; of one tap it is the layout of linear weights."""
    rows, mask = sparse(5, 6 * groups * m, n, m, torch.bfloat16)
    values, planes = pack(rows, mask, 6, n, m)
    assert values.shape[1] == 6 * filled(m, groups * m) // (32 * m)
    assert values.shape[1] // 6 % bitplane_nm.spans_at_once(m) == 0
    again = unpack(values, planes, m, (5, 6 * groups * m), 6, torch.bfloat16)
    assert torch.equal(again.view(torch.int16), rows.view(torch.int16))
    for ours, theirs in zip(pack(rows, mask, 1, n, m), bitplane_nm.pack(rows, mask, n, m)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_plain_convolution(groups: int, channels_last: bool) -> None:
    """That of torch, with activation, in the memory format of x."""
    convolution = Convolution((3, 2), (2, 1), (1, 0), (1, 2), groups)
    rows, mask = sparse(128, 6 * 16, 1, 4, torch.float16)
    x, bias = images((2, 16 * groups, 7, 5), torch.float16, channels_last), torch.randn(128).half()
    out = convolve(x, *pack(rows, mask, 6, 1, 4), bias, 4, 128, convolution, "silu")
    expected = torch.nn.functional.silu(exact(x, rows, bias, convolution))
    torch.testing.assert_close(out.double(), expected, atol=0.02, rtol=0.01)
    assert out.is_contiguous() != channels_last


def test_groups_that_fill_tiles() -> None:
    """64 outputs each; one group may have any."""
    assert fits(70, 1)
    assert fits(256, 4)
    assert not fits(256, 8)
