"""torch's raw calls of cuSPARSELt. Without a card they are pretended: what is shown is what they are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nm.kernels import cusparselt
from lightning_nm.kernels.cusparselt import Algorithm, algorithms, compress, is_two_of_four, matmul
from tests.kernels.test_gathered_nm import sparse


def test_what_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contiguous weight without -0, which cuSPARSELt may take for a third weight of a group."""
    monkeypatch.setattr(torch, "_cslt_compress", lambda rows: rows)
    rows, _ = sparse(16, 32, 2, 4, torch.bfloat16)
    signed = torch.where(rows == 0, -0.0, rows)
    given = compress(signed.T.contiguous().T)
    assert given.is_contiguous()
    assert torch.equal(given.view(torch.int16), torch.where(rows != 0, rows, 0.0).view(torch.int16))


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 32), (16, 24), (17, 32)])
def test_sizes_that_it_does_not_take(outputs: int, inputs: int) -> None:
    """Named before the library is asked."""
    with pytest.raises(ValueError, match=r"multiples of 16 outputs and inputs"):
        compress(torch.zeros(outputs, inputs).bfloat16())


def test_what_is_not_two_of_four_is_refused() -> None:
    """The library would make garbage of it and say nothing."""
    rows, _ = sparse(16, 32, 2, 4, torch.bfloat16)
    assert is_two_of_four(rows)
    rows[5, 8:11] = 1.0
    assert not is_two_of_four(rows)
    with pytest.raises(ValueError, match=r"\(16, 32\) is not 2:4"):
        compress(rows)
    assert not is_two_of_four(torch.zeros(4, 6))  # no whole groups


@pytest.mark.parametrize("batch", [1, 8, 11])
def test_any_batch(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Rows of x are filled up to eight for the library, and taken off again; the algorithm is handed on."""
    weight, seen = torch.randn(16, 32), {}

    def multiply(compressed: Tensor, dense: Tensor, **options: Any) -> Tensor:
        seen.update(options)
        assert dense.shape[0] == 32
        assert dense.shape[1] % 8 == 0
        return (compressed @ dense).T + options["bias"]

    monkeypatch.setattr(torch, "_cslt_sparse_mm", multiply)
    x, bias = torch.randn(batch, 32), torch.randn(16)
    out = matmul(x, weight, bias, Algorithm(3, 2, 1))
    torch.testing.assert_close(out, x @ weight.T + bias, atol=1e-5, rtol=1e-5)
    assert (seen["alg_id"], seen["split_k"], seen["split_k_mode"]) == (3, 2, 1)
    assert seen["transpose_result"] is True


def test_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default first, what the search found, then every other, with its split too; each once."""
    x, weight = torch.randn(8, 32), torch.randn(16, 32)
    monkeypatch.setattr(torch._C, "_cusparselt", SimpleNamespace(mm_search=lambda *given: (2, 4, 1, 3)), raising=False)
    every = algorithms(x, weight, None)
    assert every[:2] == [Algorithm(), Algorithm(2, 4, 1)]
    assert set(every) == {*(Algorithm(i) for i in range(3)), *(Algorithm(i, 4, 1) for i in range(3))}
    assert len(every) == len(set(every))
    monkeypatch.setattr(torch._C, "_cusparselt", None, raising=False)
    assert cusparselt.algorithms(x, weight, None) == [Algorithm()]  # this torch has no search
