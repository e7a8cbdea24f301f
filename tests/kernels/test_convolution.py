"""What a convolution does beside its weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lightning_nm.kernels.convolution import Convolution, filters, memory_format

ONE = Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 12),
    st.sampled_from([1, 2, 4]),
)
def test_fits_what_torch_takes(kernel: int, stride: int, padding: int, dilation: int, size: int, groups: int) -> None:
    """And gives the sizes that torch's results have."""
    convolution = Convolution((kernel, 1), (stride, 1), (padding, 0), (dilation, 1), groups)
    x, weight = torch.randn(1, 4, size, 2), torch.randn(8, 4 // groups, kernel, 1)
    try:
        out = F.conv2d(x, weight, None, (stride, 1), (padding, 0), (dilation, 1), groups)
    except RuntimeError:
        assert not convolution.fits(x.shape, 8)
        return
    assert convolution.fits(x.shape, 8)
    assert convolution.spatial(x.shape[2:]) == out.shape[2:]
    assert torch.equal(convolution.dense(x, weight, None), out)


@pytest.mark.parametrize(
    ("convolution", "shape"),
    [
        (ONE._replace(stride=(0, 1)), (1, 4, 8, 8)),
        (ONE._replace(dilation=(1, 0)), (1, 4, 8, 8)),
        (ONE._replace(padding=(-1, 0)), (1, 4, 8, 8)),
        (ONE._replace(stride=(1, 1, 1)), (1, 4, 8, 8)),
        (ONE._replace(groups=0), (1, 4, 8, 8)),
        (ONE._replace(groups=3), (1, 4, 8, 8)),
        (ONE, (4, 8, 8)),
        (ONE._replace(padding=(0, 0)), (1, 4, 2, 8)),
        (Convolution((), (), (), (), 1), (1, 4)),
    ],
)
def test_what_is_none(convolution: Convolution, shape: tuple[int, ...]) -> None:
    """Is said, before a kernel reads by it."""
    assert not convolution.fits(shape, 8)


@pytest.mark.parametrize("convolution", [ONE, Convolution((3, 2), (2, 1), (0, 2), (1, 2), 1)])
def test_patches(convolution: Convolution) -> None:
    """Times filters that are a matrix they are the convolution, pixel by pixel."""
    x, rows = torch.randn(2, 4, 7, 6), torch.randn(5, 4 * convolution.kernel[0] * convolution.kernel[1])
    out = (convolution.patches(x) @ rows.T).view(2, *convolution.spatial((7, 6)), 5).movedim(-1, 1)
    expected = convolution.dense(x, filters(rows, convolution.kernel), None)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_spread(dims: int) -> None:
    """The same convolution in three dimensions."""
    convolution = Convolution((3,) * dims, (2,) * dims, (1,) * dims, (2,) * dims, 2)
    x, weight = torch.randn(2, 4, *(6, 7, 8)[:dims]), torch.randn(6, 2, *(3,) * dims)
    view, whole = convolution.spread(x)
    out = whole.dense(view, weight.view(6, 2, *whole.kernel), None)
    expected = convolution.dense(x, weight, None)
    torch.testing.assert_close(out.view(expected.shape), expected)


def test_filters_of_a_matrix() -> None:
    """Taps one after the other, inputs within a tap."""
    weight = torch.randn(5, 4, 3, 2)
    assert torch.equal(filters(weight.permute(0, 2, 3, 1).reshape(5, -1), (3, 2)), weight)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 3, 4, 5), torch.channels_last),
        ((2, 3, 4, 5, 6), torch.channels_last_3d),
        ((2, 3, 4), torch.contiguous_format),
    ],
)
def test_memory_format(shape: tuple[int, ...], layout: torch.memory_format) -> None:
    """Of images, and of what is both."""
    x = torch.randn(shape)
    assert memory_format(x) == torch.contiguous_format
    assert memory_format(x.contiguous(memory_format=layout)) == layout
    assert (
        memory_format(torch.randn(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)) == torch.contiguous_format
    )
