"""The gradient term and the merge in one pass."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels import reference
from lightning_nm.kernels.triton import densify
from tests.kernels.triton.device import DEVICE
from tests.kernels.triton.test_split import _INTEGER, some_bits, ties


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [None, 128.0])
def test_as_plain_torch(dtype: torch.dtype, scale: float | None) -> None:
    """The dense weight bit for bit, the gradient but for its rounding."""
    dense = ties((37, 52), dtype, 0)
    weight, hidden, bits = dense.clone(), torch.empty_like(dense), some_bits(dense)
    reference.nm_split_(weight, hidden, bits, 2, 4, 1)
    grad = torch.randn(37, 52).to(dtype)
    scale = None if scale is None else torch.tensor(scale)
    ours = [t.to(DEVICE, copy=True) for t in (weight, hidden, grad)]
    versions = [t._version for t in ours]
    densify.densify_(*ours, 2e-4, None if scale is None else scale.to(DEVICE))
    reference.densify_(weight, hidden, grad, 2e-4, scale)
    assert torch.equal(ours[0].cpu().view(_INTEGER[dtype]), dense.view(_INTEGER[dtype]))
    assert torch.equal(ours[1].cpu().view(_INTEGER[dtype]), hidden.view(_INTEGER[dtype]))
    torch.testing.assert_close(ours[2].cpu(), grad)
    assert [t._version - before for t, before in zip(ours, versions)] == [1, 0, 1]


def test_nothing_to_do() -> None:
    """An empty weight launches nothing."""
    empty = torch.empty(0, 8, device=DEVICE)
    densify.densify_(empty, empty.clone(), empty.clone(), 1.0, None)
