"""Which compiled kernel multiplies a packed weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("llvmlite")

from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.kernels.cpu import block_columns, block_matmul, nm_columns, nm_matmul, packed
from lightning_nm.patterns import NM, Block1xN, parse
from lightning_nm.sparse import pack


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that were called."""
    names: list[str] = []

    def watch(module: Any, function: str) -> None:
        original = getattr(module, function)

        def call(*arguments: Any) -> Any:
            names.append(module.__name__.rpartition(".")[2])
            return original(*arguments)

        monkeypatch.setattr(module, function, call)

    for module, function in (
        (nm_matmul, "convolution"),
        (nm_columns, "convolution"),
        (block_matmul, "convolution"),
        (block_columns, "convolution"),
        (block_matmul, "matmul"),
        (block_columns, "matmul"),
    ):
        watch(module, function)
    return names


def convolve(pattern: str, size: int, kernel: int, *, last: bool, groups: int = 1) -> tuple[Tensor, Tensor]:
    """(result, what torch makes of it)"""
    torch.manual_seed(0)
    rule = parse(pattern)
    assert isinstance(rule, (NM, Block1xN))
    dense = torch.randn(32, 32 // groups, kernel, kernel)
    weight = torch.where(rule.mask(dense), dense, 0.0)
    x = torch.randn(2, 32, size, size)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    convolution = Convolution((kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), groups)
    out = pack(weight, rule).convolution(x, None, convolution)
    assert memory_format(out) == memory_format(x)
    return out, convolution.dense(x, weight, None)


@pytest.mark.parametrize(
    ("pattern", "size", "kernel", "last", "expected"),
    [
        ("2:4", 30, 3, True, "nm_matmul"),
        ("2:4", 30, 3, False, "nm_columns"),
        ("2:4", 14, 3, False, "nm_matmul"),
        ("2:4", 7, 1, False, "nm_columns"),
        ("1x16@0.5", 30, 3, True, "block_matmul"),
        ("1x16@0.5", 20, 3, False, "block_columns"),
        ("1x16@0.5", 14, 3, False, "block_matmul"),
        ("1x4@0.5", 14, 3, True, "block_columns"),
        ("1x1@0.5", 7, 1, False, "block_columns"),
    ],
)
def test_convolutions(called: list[str], pattern: str, size: int, kernel: int, last: bool, expected: str) -> None:
    """By memory format, size of the image and N; right whichever it is."""
    out, dense = convolve(pattern, size, kernel, last=last)
    assert called == [expected]
    torch.testing.assert_close(out, dense, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("n", "batch", "expected"),
    [
        (16, 1, "block_matmul"),
        (16, 64, "block_matmul"),
        (4, 1, "block_matmul"),
        (4, 64, "block_columns"),
        (3, 1, "block_columns"),
    ],
)
def test_linear_blocks(called: list[str], n: int, batch: int, expected: str) -> None:
    """By N and the rows of x."""
    rule = Block1xN(n, 0.5)
    dense = torch.randn(48, 40)
    weight = torch.where(rule.mask(dense), dense, 0.0)
    x = torch.randn(batch, 40)
    torch.testing.assert_close(pack(weight, rule).linear(x), x @ weight.T, atol=1e-4, rtol=1e-4)
    assert called[0] == expected  # columns make a convolution of it


def test_none_for_groups_that_cut_lanes() -> None:
    """The plain way multiplies these."""
    out, dense = convolve("2:4", 8, 3, last=True, groups=8)
    torch.testing.assert_close(out, dense, atol=1e-4, rtol=1e-4)
    values, positions = torch.zeros(2, 1, 8, 16), torch.zeros(2, 1, 1, 16, dtype=torch.int32)
    from lightning_nm.kernels.packed_nm import Layout

    layout, convolution = Layout.of(2, 4, 36, 9), Convolution((3, 3), (1, 1), (1, 1), (1, 1), 8)
    assert packed.nm_convolution(torch.randn(2, 32, 8, 8), values, positions, None, layout, 32, convolution) is None
