"""Where the inputs of rows and pixels lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import rows
from tests.kernels.cpu.convolutions import convolutions, images


@settings(deadline=None)
@given(convolutions(), st.integers(1, 300), st.integers(0, 3), st.booleans())
def test_pixels_see_what_torch_convolves(
    case: tuple[Convolution, tuple[int, ...]], channels: int, batch: int, channels_last: bool
) -> None:
    """One input of one tap at a time."""
    convolution, sizes = case
    x = images(batch, channels, sizes, channels_last)
    where = rows.pixel_rows(x.shape, convolution, channels)
    held, channel = rows.held_pixels(x, where, convolution).flatten(), channels - 1
    for tap, shift in enumerate(where.taps):
        one = torch.zeros(1, 1, *convolution.kernel)
        one.view(-1)[tap] = 1.0
        seen = held[where.bases + shift + channel].view(where.shape)
        assert torch.equal(seen, convolution.dense(x[:, channel:], one, None)[:, 0])


def test_nothing_is_copied_without_need() -> None:
    """Neither a matrix nor channels_last images that want no padding."""
    x = torch.randn(3, 32)
    assert rows.held_matrix(x, rows.matrix_rows(3, 32)).data_ptr() == x.data_ptr()
    convolution = Convolution((1, 1), (2, 2), (0, 0), (1, 1), 1)
    x = images(2, 24, (5, 5))
    assert rows.held_pixels(x, rows.pixel_rows(x.shape, convolution, 24), convolution).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    ("total", "expected"), [(1, 1), (7, 7), (8, 4), (9, 5), (12, 6), (16, 4), (49, 7), (64, 4), (196, 7)]
)
def test_tiles_repeat_few_rows(total: int, expected: int) -> None:
    """The size that fits best, of those that share what is loaded among enough rows."""
    assert rows.tile_rows(total, 7) == expected


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 7), st.integers(1, 100))
def test_spans_hold_all_rows(total: int, size: int, columns: int) -> None:
    """In whole tiles, none of them empty."""
    size = min(size, total)
    share = rows.spans(total, size, columns)
    assert share.size % size == 0
    assert (share.spans - 1) * share.size < total <= share.spans * share.size
