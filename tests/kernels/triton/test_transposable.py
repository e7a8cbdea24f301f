"""Transposable 2:4 masks in Triton."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
pytest.importorskip("hypothesis")
pytest.importorskip("scipy")

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm import kernels
from lightning_nm.kernels.triton import transposable
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind
from tests.kernels.triton.device import DEVICE


def assert_same(weight: Tensor, inputs: int = 1, outputs: int = 0) -> None:
    mask = transposable.mask_2_4(weight.to(DEVICE), inputs, outputs)
    assert torch.equal(mask.cpu(), kernels.transposable_mask(weight, 2, 4, inputs, outputs))
    assert mask.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ODD_TILES)
def test_every_kind_of_tile(kind: str) -> None:
    """The mask that the CPU finds, whatever the magnitudes; the first of the table where several are best."""
    assert_same(tiles_of_kind(kind, 12, 4).flatten(0, 1))


@pytest.mark.gpu
@settings(deadline=None, max_examples=6)
@given(st.lists(st.integers(-2, 2), min_size=256, max_size=256), st.sampled_from([1.0, 1e-30, 3e37]))
def test_ties(entries: list[int], scale: float) -> None:
    """Few magnitudes make many masks equal: the first of the table wins."""
    assert_same(torch.tensor(entries).view(16, 16).float() * scale)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"),
    [((8, 136), 1, 0), ((4, 8), 0, 1), ((8, 4, 3, 2), 1, 0), ((4, 8, 3), 0, 1), ((3, 4, 2, 8), -1, 1)],
)
def test_any_order_of_dimensions(shape: tuple[int, ...], inputs: int, outputs: int) -> None:
    """Linear layers and convolutions, transposed ones too."""
    torch.manual_seed(0)
    assert_same(torch.randn(shape).bfloat16(), inputs, outputs)


@pytest.mark.gpu
def test_channels_last() -> None:
    """Read where it lies; the mask is row-major."""
    torch.manual_seed(0)
    assert_same(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))


@pytest.mark.gpu
def test_nothing_to_mask() -> None:
    """An empty weight launches nothing."""
    assert transposable.mask_2_4(torch.empty(0, 8, device=DEVICE), 1, 0).shape == (0, 8)
