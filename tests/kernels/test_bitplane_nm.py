"""The layout with positions in bit planes."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.kernels.bitplane_nm import matmul, ordered, pack, spans, supports, unpack
from tests.kernels.test_gathered_nm import sparse

PATTERNS = [(1, 2), (2, 4), (1, 4), (2, 8), (1, 8), (1, 16), (2, 16)]


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("outputs", "groups"), [(5, 37), (1, 1), (70, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_round_trip(n: int, m: int, outputs: int, groups: int, dtype: torch.dtype) -> None:
    """Bit for bit, and the plain product of it."""
    assert supports(n, m)
    rows, mask = sparse(outputs, groups * m, n, m, dtype)
    values, planes = pack(rows, mask, n, m)
    assert values.is_contiguous()
    assert planes.is_contiguous()  # kernels read them as they lie
    again = unpack(values, planes, m, (outputs, groups * m), dtype)
    assert torch.equal(again.view(torch.int16), rows.view(torch.int16))
    x = torch.randn(2, groups * m).to(dtype)
    assert torch.equal(matmul(x, values, planes, None, m, outputs), x @ rows.T)


def test_every_input_is_taken_once() -> None:
    """The two halves of a word, groups q and q + 16, side by side; zeros fill up."""
    taken = ordered(torch.arange(1, 501)[None], 4)[0]
    assert len(taken) == spans(4, 500) * 128
    assert torch.equal(taken.sort().values[-500:], torch.arange(1, 501))
    assert taken[:4].tolist() == [1, 65, 2, 66]


@pytest.mark.parametrize("pattern", [(3, 4), (1, 6), (1, 32)])
def test_other_patterns(pattern: tuple[int, int]) -> None:
    """Have no planes."""
    assert not supports(*pattern)
