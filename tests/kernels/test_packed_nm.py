"""The layout of packed N:M weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_nm.kernels.packed_nm import LANES, LARGEST_M, Layout, matmul, pack, positions_of, unpack
from lightning_nm.kernels.reference import nm_mask
from tests.helpers import same_bits

PATTERNS = [(2, 4), (1, 4), (3, 4), (1, 2), (2, 3), (3, 8), (4, 8), (1, 8), (7, 8), (1, 16), (5, 16), (16, 16)]
PATTERNS += [(3, 7), (1, 1), (2, 32), (16, 32), (3, 20), (1, 17)]


def sparse(outputs: int, inputs: int, n: int, m: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(rows, mask)."""
    torch.manual_seed(0)
    rows = torch.randn(outputs, inputs).to(dtype)
    mask = nm_mask(rows, n, m, 1)
    return torch.where(mask, rows, 0.0), mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("outputs", "groups"), [(16, 4), (1, 1), (35, 13)])
def test_round_trip(outputs: int, groups: int, n: int, m: int, dtype: torch.dtype) -> None:
    """Bit for bit, whatever is filled up."""
    rows, mask = sparse(outputs, groups * m, n, m, dtype)
    layout = Layout.of(n, m, groups * m)
    assert same_bits(unpack(*pack(rows, mask, layout), layout, outputs), rows)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_shapes(n: int, m: int) -> None:
    """As the layout says, in whole lanes."""
    rows, mask = sparse(20, 10 * m, n, m)
    layout = Layout.of(n, m, 10 * m)
    values, positions = pack(rows, mask, layout)
    assert values.shape == (2, layout.chunks, layout.weights, LANES)
    assert positions.shape == (2, layout.chunks, layout.words, LANES)
    assert positions.dtype == torch.int32
    assert layout.window <= (LANES if m <= LANES else LARGEST_M)
    assert layout.window % m == 0
    assert layout.weights <= layout.words * layout.per_word


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_positions_lie_in_their_window(n: int, m: int) -> None:
    """And rise, so that no weight is written over another."""
    layout = Layout.of(n, m, 10 * m)
    _, positions = pack(*sparse(20, 10 * m, n, m), layout)
    at = positions_of(positions, layout).unflatten(2, (layout.windows, -1))
    assert int(at.min()) >= 0
    assert int(at.max()) < layout.window
    assert bool((at.diff(dim=3) > 0).all())


@pytest.mark.parametrize(("n", "m", "share"), [(2, 4, 0.5625), (1, 4, 0.28125), (1, 8, 0.140625), (8, 16, 0.5625)])
def test_bytes(n: int, m: int, share: float) -> None:
    """The kept weights, and four bits for each."""
    rows, mask = sparse(64, 256, n, m)
    values, positions = pack(rows, mask, Layout.of(n, m, 256))
    assert values.nbytes + positions.nbytes == share * rows.nbytes


@pytest.mark.parametrize(
    ("inputs", "taps", "window"),
    [(64, 1, 16), (24, 1, 12), (20, 1, 16), (4, 1, 16), (24 * 9, 9, 12), (20 * 9, 9, 4), (4 * 9, 9, 4)],
)
def test_windows_make_up_the_inputs(inputs: int, taps: int, window: int) -> None:
    """Those of every tap; without taps, narrow windows are not worth it."""
    assert Layout.of(2, 4, inputs, taps).window == window


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 32), st.integers(1, 40), st.integers(1, 12), st.data())
def test_matmul_is_linear(m: int, outputs: int, groups: int, data: st.DataObject) -> None:
    """Against float64."""
    n = data.draw(st.integers(1, m))
    rows, mask = sparse(outputs, groups * m, n, m)
    layout = Layout.of(n, m, groups * m)
    x, bias = torch.randn(3, groups * m), torch.randn(outputs)
    out = matmul(x, *pack(rows, mask, layout), bias, layout, outputs)
    torch.testing.assert_close(out.double(), x.double() @ rows.double().T + bias, atol=1e-4, rtol=1e-5)
