"""Who can multiply, and that each multiplies right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_nm import kernels
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import BACKENDS, PackedBlocks, PackedNM, pack
from tests.sparse.models import assert_near, sparse_weight

NAMES = ["dense", "onednn", "cpu"]
PATTERNS = {"2:4": NM(2, 4), "1x16@0.5": Block1xN(16, 0.5)}


@pytest.mark.parametrize("written", PATTERNS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("shape", [(32,), (5, 32), (2, 3, 32), (1, 32)])
@pytest.mark.parametrize("name", NAMES)
def test_linear(name: str, shape: tuple[int, ...], dim: int, written: str) -> None:
    """Each operand gives x @ W^T + bias; of ``[in, out]`` weights x @ W + bias."""
    weight, bias, x = sparse_weight((32, 32), written, dim=dim), torch.randn(32), torch.randn(shape)
    out = BACKENDS[name].hold(weight, PATTERNS[written], dim).linear(x, bias)
    assert_near(out, F.linear(x.double(), (weight if dim else weight.T).double(), bias.double()))


@pytest.mark.parametrize("written", PATTERNS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", NAMES)
def test_convolution(name: str, layout: torch.memory_format, written: str) -> None:
    """Each operand gives torch's convolution, and keeps the memory format of x; other batches follow."""
    weight, bias = sparse_weight((32, 16, 3, 3), written), torch.randn(32)
    convolution = Convolution((3, 3), (2, 1), (1, 0), (1, 2), 1)
    operand = BACKENDS[name].hold(weight, PATTERNS[written], 1)
    for batch in (2, 5):
        x = torch.randn(batch, 16, 9, 8).contiguous(memory_format=layout)
        out = operand.convolution(x, bias, convolution)
        assert_near(out, convolution.dense(x.double(), weight.double(), bias.double()))
        assert out.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("name", "weight", "x", "reason"),
    [
        ("onednn", torch.empty(8, 8, device="meta"), torch.empty(2, 8, device="meta"), "oneDNN is for CPUs"),
        ("onednn", torch.empty(8, 8).half(), torch.empty(2, 8).half(), "prepacked weights are float32"),
        ("onednn", torch.empty(8, 8, 3), torch.empty(2, 8, 9), "it prepacks no kernels of one dimension"),
        ("cpu", torch.empty(8, 8, device="meta"), torch.empty(2, 8, device="meta"), "its kernels are for CPUs"),
        ("cpu", torch.empty(8, 8).double(), torch.empty(2, 8).double(), "no kernel for torch.float64"),
    ],
)
def test_what_they_cannot(name: str, weight: Any, x: Any, reason: str) -> None:
    """A reason for the report."""
    assert BACKENDS[name].why_not(weight, NM(2, 4), x) == reason


@pytest.mark.parametrize("name", NAMES)
def test_what_they_can(name: str) -> None:
    """Float32 on a CPU."""
    assert BACKENDS[name].why_not(torch.empty(8, 8), NM(2, 4), torch.empty(2, 8)) is None


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse kernels say that they are not there; dense ones are always."""
    monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    assert "numba is not there or does not import" in str(
        BACKENDS["cpu"].why_not(torch.empty(8, 8), NM(2, 4), torch.empty(2, 8))
    )
    assert BACKENDS["dense"].why_not(torch.empty(8, 8), NM(2, 4), torch.empty(2, 8)) is None


def test_pack() -> None:
    """In the form of its pattern."""
    assert isinstance(pack(sparse_weight((16, 16)), NM(2, 4)), PackedNM)
    assert isinstance(pack(sparse_weight((16, 16), "1x16@0.5"), Block1xN(16, 0.5)), PackedBlocks)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("written", PATTERNS)
def test_another_default_dtype(written: str, default: torch.dtype) -> None:
    """Kernels get memory of their own dtype where torch's default is another, as in Lightning's "bf16-true"."""
    images, rows = torch.randn(3, 16, 9, 8), torch.randn(64, 64)
    layer, matrix = nn.Conv2d(16, 32, 3, padding=1), sparse_weight((64, 64), written)
    filters, bias = sparse_weight((32, 16, 3, 3), written), layer.bias
    convolution = Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)
    torch.set_default_dtype(default)
    try:
        with torch.no_grad():
            convolved = pack(filters, PATTERNS[written]).convolution(images, bias, convolution)
            multiplied = pack(matrix, PATTERNS[written]).linear(rows)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_near(convolved, convolution.dense(images, filters, bias))
    assert_near(multiplied, rows @ matrix.T)
