"""The plain product of packed 1xN weights."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nm.kernels.packed_blocks import matmul, rows_of, unpack


def blocks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weight [6, 4], its values, inputs and starts): rows of two outputs with two, no and one block."""
    weight = torch.zeros(6, 4)
    weight[:2, 1], weight[:2, 3], weight[4:, 0] = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 5.0
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
    inputs, starts = torch.tensor([1, 3, 0], dtype=torch.int16), torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    return weight, values, inputs, starts


def test_rows_of_blocks() -> None:
    """One for each block, though a row may have none."""
    assert rows_of(blocks()[3]).tolist() == [0, 0, 2]


def test_unpack() -> None:
    """Every block at its place."""
    weight, *packed = blocks()
    assert torch.equal(unpack(*packed, 4), weight)


def test_matmul_is_linear() -> None:
    """With and without a bias."""
    weight, *packed = blocks()
    x, bias = torch.randn(3, 4), torch.randn(6)
    torch.testing.assert_close(matmul(x, *packed, None), x @ weight.T)
    torch.testing.assert_close(matmul(x, *packed, bias), x @ weight.T + bias)
