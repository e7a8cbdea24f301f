"""Packing, compiled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("numba")

from lightning_nm import kernels
from lightning_nm.kernels import packed_nm
from lightning_nm.kernels.cpu import nm_pack
from lightning_nm.kernels.packed_nm import Layout


def plain(rows: Tensor, n: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """What `kernels.nm_pack` does without numba."""
    ranks = torch.where(rows != 0, 2.0, rows.signbit().float())
    return packed_nm.pack(rows, kernels.nm_mask(ranks, n, layout.group, 1), layout)


def assert_same(rows: Tensor, n: int, layout: Layout) -> None:
    """Bit for bit."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    packed = nm_pack.pack(rows, n, layout)
    assert not isinstance(packed, int)
    expected = plain(rows, n, layout)
    assert torch.equal(packed[0].view(integers), expected[0].view(integers))
    assert torch.equal(packed[1], expected[1])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(2, 4), (1, 4), (1, 8), (4, 8), (3, 7), (1, 16), (8, 16), (3, 32), (20, 24), (1, 1), (1, 3)]),
    st.integers(1, 40),
    st.integers(1, 12),
    st.sampled_from([1, 3, 9]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 1000),
)
def test_bit_for_bit(
    pattern: tuple[int, int], outputs: int, groups: int, taps: int, dtype: torch.dtype, seed: int
) -> None:
    """As the plain way packs, zeros of both signs and NaN included, groups with fewer than N too."""
    n, m = pattern
    torch.manual_seed(seed)
    rows = torch.randn(outputs, taps * groups * m)
    rows[torch.rand_like(rows) < 0.3] = 0.0
    rows = torch.where(kernels.nm_mask(rows, n, m, 1), rows, torch.where(torch.rand_like(rows) < 0.5, 0.0, -0.0))
    if seed % 5 == 0:
        rows[rows != 0] = torch.nan
    assert_same(rows.to(dtype), n, Layout.of(n, m, rows.shape[1], taps))


def test_rows_that_do_not_lie_in_order() -> None:
    """A transposed weight."""
    rows = torch.randn(16, 24)
    rows = torch.where(kernels.nm_mask(rows, 2, 4, 1), rows, 0.0)
    assert_same(rows.T.contiguous().T, 2, Layout.of(2, 4, 24))


@pytest.mark.parametrize(("output", "group"), [(0, 0), (3, 2), (19, 5)])
def test_the_first_group_that_holds_more(output: int, group: int) -> None:
    """Counted through all rows, by both ways."""
    rows = torch.zeros(20, 24)
    rows[output, group * 4 : group * 4 + 3] = 1.0
    rows[19, 20:24] = 1.0
    assert nm_pack.pack(rows, 2, Layout.of(2, 4, 24)) == output * 6 + group
