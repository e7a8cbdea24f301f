"""N:M masks in Triton."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from lightning_nm.kernels import reference
from lightning_nm.kernels.triton import nm_mask
from tests.kernels.triton.device import DEVICE
from tests.kernels.triton.test_split import ties


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "dim"), [((6, 24), 1), ((24, 5), 0), ((4, 12, 3, 3), 1), ((12, 4, 2), -3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_dimension(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """Of equal magnitudes the first is kept, along whichever dimension."""
    weight = ties(shape, dtype, 0)
    for n, m in ((1, 4), (4, 6)):
        mask = nm_mask.nm_mask(weight.to(DEVICE), n, m, dim)
        assert torch.equal(mask.cpu(), reference.nm_mask(weight, n, m, dim))


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 3, 32, 34])
def test_any_size_of_group(m: int) -> None:
    """Also where a thread cannot hold a group."""
    weight = ties((2, 2 * m), torch.float32, 0)
    n = -(-m // 2)
    assert torch.equal(nm_mask.nm_mask(weight.to(DEVICE), n, m, 1).cpu(), reference.nm_mask(weight, n, m, 1))
