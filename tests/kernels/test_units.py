"""Norms of units, and the largest of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm.kernels.units import largest, sum_in_order, unit_norms


@pytest.mark.parametrize("sizes", [{}, {0: 3}, {0: 3, 2: 5}, {0: 6, 1: 4, 2: 5}, {1: 2}, {-1: 5}])
def test_norms_are_sums_of_magnitudes(sizes: dict[int, int]) -> None:
    """Of each block, wherever it lies."""
    weight = torch.randn(6, 4, 5)
    norms = unit_norms(weight, sizes)
    size = [sizes.get(d, sizes.get(d - 3, 1)) for d in range(3)]
    expected = torch.nn.functional.avg_pool3d(weight.double().abs()[None], size) * torch.Size(size).numel()
    torch.testing.assert_close(norms, expected[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_sums_do_not_depend_on_the_layout(size: int) -> None:
    """Bit for bit, along whichever dimension and stride."""
    terms = torch.randn(4, size, 9, dtype=torch.float64) * 10.0 ** torch.randint(-8, 8, (4, size, 9))
    expected = sum_in_order(terms, 1)
    assert torch.equal(sum_in_order(terms.transpose(1, 2).contiguous(), 2), expected)
    assert torch.equal(torch.stack([sum_in_order(t, 0) for t in terms]), expected)
    torch.testing.assert_close(expected, terms.sum(1), rtol=1e-6, atol=1e-6)


def test_terms_stay_as_they_are() -> None:
    """Sums are new."""
    terms = torch.ones(3, 4)
    sum_in_order(terms, 1)
    assert torch.equal(terms, torch.ones(3, 4))


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_largest_first_and_ties_by_index(norms: list[int], data: st.DataObject) -> None:
    """As a stable sort would have it."""
    kept = data.draw(st.integers(1, len(norms)))
    first = sorted(range(len(norms)), key=lambda i: (-norms[i], i))[:kept]
    mask = largest(torch.tensor(norms, dtype=torch.float64), kept)
    assert mask.nonzero().flatten().tolist() == sorted(first)


def test_largest_keeps_the_shape() -> None:
    """Norms of any dimensions."""
    norms = torch.randn(3, 4, 1, 2).double()
    mask = largest(norms, 5)
    assert mask.shape == norms.shape
    assert int(mask.sum()) == 5
