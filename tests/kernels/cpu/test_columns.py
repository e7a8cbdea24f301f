"""Where the pixels of a convolution lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("llvmlite")

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu.columns import Columns, columns, lay_out, without_inputs


@st.composite
def convolutions(draw: st.DrawFn, groups: int = 1) -> tuple[Convolution, tuple[int, ...]]:
    """Any that fit, and the sizes of their images."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    convolution = Convolution(each(1, 3), each(1, 3), each(0, 2), each(1, 2), groups)
    reach = [d * (k - 1) + 1 - 2 * p for k, p, d in zip(*(convolution[i] for i in (0, 2, 3)))]
    most = (40, 18, 6)[dims - 1]
    return convolution, tuple(draw(st.integers(max(1, low), max(1, low) + most)) for low in reach)


def gathered(found: Columns, laid: Tensor) -> Tensor:
    """What each tap meets for each pixel, of one image and input: ``[T, pixels]``."""
    flat, met = laid.flatten(), torch.full((len(found.taps), found.pixels), torch.nan)
    for start, lanes, place in zip(found.starts.tolist(), found.lanes.tolist(), found.places.tolist()):
        pixels = [lane for lane in lanes if lane >= 0]
        for t, tap in enumerate(found.taps.tolist()):
            vector = flat[start + tap : start + tap + 16]
            assert len(vector) == 16  # nothing behind the end is read
            met[t, place : place + len(pixels)] = vector[pixels]
    return met


@settings(deadline=None, max_examples=60)
@given(convolutions())
def test_every_pixel_meets_its_inputs(drawn: tuple[Convolution, tuple[int, ...]]) -> None:
    """As a convolution by filters of a single one sees them."""
    convolution, sizes = drawn
    x = torch.randn(1, 1, *sizes)
    found = columns(sizes, convolution)
    taps = len(found.taps)
    ones = torch.eye(taps).view(taps, 1, *convolution.kernel)
    expected = convolution.dense(x, ones, None)
    assert found.sizes == expected.shape[2:]
    assert torch.equal(gathered(found, lay_out(x, convolution, found)), expected.view(taps, -1))


def test_an_image_that_lies_right_is_not_copied() -> None:
    """Stride 1 and no padding."""
    convolution = Convolution((3, 3), (1, 1), (0, 0), (1, 1), 1)
    x = torch.randn(2, 3, 8, 8)
    assert lay_out(x, convolution, columns((8, 8), convolution)) is x


def test_one_tap_needs_no_phases() -> None:
    """A 1x1 convolution of stride 2 keeps every second row and column only."""
    convolution = Convolution((1, 1), (2, 2), (0, 0), (1, 1), 1)
    x = torch.randn(2, 3, 14, 14)
    found = columns((14, 14), convolution)
    assert found.plane == 49
    assert torch.equal(lay_out(x, convolution, found).view(2, 3, 7, 7), x[:, :, ::2, ::2])


def test_the_last_vector_goes_back() -> None:
    """Its first lanes are done twice, so that none is left over."""
    found = columns((20,), Convolution((1,), (1,), (0,), (1,), 1))
    assert found.starts.tolist() == [0, 4]
    assert found.places.tolist() == [0, 4]
    assert (found.lanes == torch.arange(16)).all()


def test_nothing_to_multiply() -> None:
    """The bias, for every pixel."""
    convolution = Convolution((1, 3), (1, 1), (0, 0), (1, 1), 1)
    bias = torch.tensor([1.0, 2.0])
    out = without_inputs(torch.empty(3, 0, 4, 4), bias, 2, convolution)
    assert torch.equal(out, bias.view(1, 2, 1, 1).expand(3, 2, 4, 2))
    assert without_inputs(torch.empty(0, 8, 4, 4), None, 2, convolution).shape == (0, 2, 4, 2)
