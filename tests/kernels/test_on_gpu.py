"""Which products multiply on a GPU, and without one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from lightning_nm.kernels import on_gpu, vectorwise_nm
from lightning_nm.kernels.gathered_nm import Layout
from tests.kernels.test_gathered_nm import sparse


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    """What was found out for one test says nothing for the next."""
    on_gpu.no_triton.cache_clear()
    on_gpu._products.cache_clear()
    yield
    on_gpu.no_triton.cache_clear()
    on_gpu._products.cache_clear()


@pytest.mark.parametrize(
    ("version", "reason"),
    [("3.5.0", None), ("3.10.1", None), ("4.0.0", None), ("3.4.9", "triton 3.4.9 is older than 3.5")],
)
def test_versions_of_triton(monkeypatch: pytest.MonkeyPatch, version: str, reason: str | None) -> None:
    """Numbers are compared as numbers: 3.10 is newer than 3.5."""
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=version))
    assert on_gpu.no_triton() == reason


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain products of the same layouts, even where somebody asks to interpret."""
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert on_gpu.no_triton() == "triton is not installed"
    assert on_gpu._products("gathered_nm", True).__name__ == "lightning_nm.kernels.gathered_nm"


def test_triton_is_not_asked_for_tensors_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines without a card need not import it."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(on_gpu, "no_triton", lambda: pytest.fail("triton was asked for"))
    assert on_gpu._products("bitplane_nm", False).__name__ == "lightning_nm.kernels.bitplane_nm"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_packed_weights_keep_their_dtype(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """So that no kernel reads float16 as bfloat16; the products are the dense ones."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    rows, mask = sparse(70, 128, 2, 4, dtype)
    x, layout = torch.randn(3, 128).to(dtype), Layout.of(2, 4, 128)
    assert layout is not None
    positions, values = on_gpu.pack_gathered(rows, mask, layout)
    pairs, planes = on_gpu.pack_bitplane(rows, mask, 2, 4)
    kept, metadata = on_gpu.pack_sparse_mma(rows, mask)
    assert values.dtype == pairs.dtype == kept.dtype == dtype
    expected = x.double() @ rows.double().T
    for out in (
        on_gpu.gathered(x, positions, values, None, layout),
        on_gpu.bitplane(x, pairs, planes, None, 4, 70),
        on_gpu.vectorwise(x, *vectorwise_nm.pack(rows, 32), None, 70),
        on_gpu.sparse_tensor_cores(x, kept, metadata, None, 70),
    ):
        torch.testing.assert_close(out.double(), expected, atol=0.05, rtol=0.02)
