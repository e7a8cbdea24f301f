"""Weights as they are stored."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("llvmlite")

from lightning_nm.kernels.cpu.stored import aligned


def test_what_lies_well_is_not_copied() -> None:
    """Only views from odd places on, and strided ones."""
    tensor = torch.randn(64)
    assert aligned(tensor).data_ptr() == tensor.data_ptr()
    for view in (tensor[1:17], tensor[::2]):
        copy = aligned(view)
        assert copy.data_ptr() % 64 == 0
        assert copy.is_contiguous()
        assert torch.equal(copy, view)
