"""The mask kernels in Triton at any size."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.triton.test_split import assert_same


@pytest.mark.gpu
@settings(deadline=None, max_examples=12)
@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.sampled_from([1, 2, 9]),
    st.sampled_from([0, 1]),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_size(outputs: int, groups: int, taps: int, dim: int, with_hidden: bool, seed: int) -> None:
    """Along either dimension, with a hidden part or without."""
    shape = (outputs, 4 * groups, taps) if dim else (4 * groups, outputs, taps)
    assert_same(shape, dim, 2, 4, torch.float32, with_hidden, seed)
