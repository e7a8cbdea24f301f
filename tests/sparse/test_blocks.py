"""Packed 1xN weights come back bit for bit, also by way of torch's BSR matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_nm.patterns import Block1xN
from lightning_nm.sparse import PackedBlocks
from tests.helpers import same_bits

SHAPES = [((8, 6), 1), ((6, 8), 0), ((8, 4, 3), 1), ((8, 4, 3, 2), 1), ((4, 8, 3, 3), 0)]


def sparse(shape: tuple[int, ...], pattern: Block1xN, dim: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    return torch.where(pattern.mask(weight, dim=dim), weight, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_round_trip(n: int, shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """Pack and unpack, and BSR and back."""
    pattern = Block1xN(n, 0.5)
    weight = sparse(shape, pattern, dim, dtype)
    packed = PackedBlocks.pack(weight, pattern, dim=dim)
    assert same_bits(packed.unpack(), weight)
    assert same_bits(PackedBlocks.from_bsr(packed.to_bsr(), weight.shape, dim=dim).unpack(), weight)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.floats(0, 0.99), st.data())
def test_any_weight_comes_back(n: int, rows: int, inputs: int, taps: int, sparsity: float, data: st.DataObject) -> None:
    """Bit for bit where a block stays; -0.0 is 0 where none does."""
    values = st.sampled_from([0.0, -0.0, 1.0, -2.5])
    size = n * rows * inputs * taps
    weight = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size))).view(n * rows, inputs, taps)
    pattern = Block1xN(n, sparsity)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    packed = PackedBlocks.pack(weight, pattern)
    stays = (weight != 0).view(rows, n, inputs, taps).any(3).any(1)[:, None, :, None].expand(rows, n, inputs, taps)
    expected = torch.where(stays.reshape(weight.shape), weight, 0.0)
    assert same_bits(packed.unpack(), expected)
    assert same_bits(PackedBlocks.from_bsr(packed.to_bsr(), weight.shape).unpack(), expected)


def test_negative_zeros_of_a_product_with_the_mask() -> None:
    """Are no blocks that stay."""
    pattern, weight = Block1xN(4, 0.5), -torch.ones(8, 6)
    packed = PackedBlocks.pack(weight * pattern.mask(weight), pattern)
    assert len(packed.inputs) == 6


def test_bsr_is_the_matrix_of_the_weight() -> None:
    """[O, I * T], as torch itself reads it."""
    weight = sparse((8, 4, 3), Block1xN(4, 0.5))
    matrix = PackedBlocks.pack(weight, Block1xN(4, 0.5)).to_bsr()
    assert matrix.values().shape[1:] == (4, 1)
    assert torch.equal(matrix.to_dense(), weight.flatten(1))


def test_bytes() -> None:
    """Half of the weights, and two bytes for each block."""
    weight = sparse((64, 64), Block1xN(16, 0.5))
    assert PackedBlocks.pack(weight, Block1xN(16, 0.5)).nbytes == weight.nbytes // 2 + 2 * 128 + 4 * 5


def test_a_weight_that_breaks_its_pattern() -> None:
    """Is not packed."""
    with pytest.raises(ValueError, match=r"\(8, 4\) holds 4 more blocks than 1x4@0.5 allows"):
        PackedBlocks.pack(torch.ones(8, 4), Block1xN(4, 0.5))


@pytest.mark.parametrize(
    ("part", "damaged"),
    [
        ("inputs", lambda t: t + 6),
        ("inputs", lambda t: -t - 1),
        ("inputs", lambda t: t.flip(0)),
        ("inputs", lambda t: t[:-1]),
        ("inputs", lambda t: t.long()),
        ("starts", lambda t: t.long()),
        ("starts", lambda t: t + 1),
        ("starts", lambda t: t.flip(0)),
        ("starts", lambda t: t[:-1]),
        ("values", lambda t: t[:-1]),
        ("values", lambda t: t[:, :, :-1]),
        ("values", lambda t: t[0]),
        ("shape", lambda s: torch.Size([6, 8])),
        ("shape", lambda s: torch.Size([48])),
        ("dim", lambda d: 2),
    ],
)
def test_what_was_damaged_is_refused(part: str, damaged: Any) -> None:
    """Promise 7: a ValueError, never a read beyond the end."""
    packed = PackedBlocks.pack(sparse((8, 6), Block1xN(4, 0.5)), Block1xN(4, 0.5))
    with pytest.raises(ValueError, match="corrupt packed blocks"):
        replace(packed, **{part: damaged(getattr(packed, part))})


def test_other_matrices_are_refused() -> None:
    """Blocks of another shape, or without all the taps."""
    dense = torch.eye(8)
    for matrix in (dense.to_sparse_csr(), dense.to_sparse_bsr((2, 2))):
        with pytest.raises(ValueError, match=r"blocks \(N, 1\)"):
            PackedBlocks.from_bsr(matrix, torch.Size([8, 8]))
    dense[0, 0] = 0  # one of the taps of input 0
    with pytest.raises(ValueError, match="all 2 taps"):
        PackedBlocks.from_bsr(dense.to_sparse_bsr((4, 1)), torch.Size([8, 4, 2]))


@pytest.mark.parametrize("n", [4, 16, 32])
def test_linear(n: int) -> None:
    """Any leading dimensions; by the compiled kernel where blocks fill vectors."""
    weight, bias = sparse((64, 24), Block1xN(n, 0.5)), torch.randn(64)
    x = torch.randn(2, 3, 24)
    out = PackedBlocks.pack(weight, Block1xN(n, 0.5)).linear(x, bias)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, weight, bias), atol=1e-4, rtol=1e-5)


def test_inputs_that_do_not_fit() -> None:
    """Another width, or a convolution's weight."""
    for shape in ((8, 6), (8, 4, 3)):
        packed = PackedBlocks.pack(sparse(shape, Block1xN(4, 0.5)), Block1xN(4, 0.5))
        with pytest.raises(ValueError, match="does not fit a linear weight"):
            packed.linear(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"a bias of shape \(7,\) for 8 outputs"):
        PackedBlocks.pack(sparse((8, 6), Block1xN(4, 0.5)), Block1xN(4, 0.5)).linear(torch.randn(3, 6), torch.randn(7))


@pytest.mark.parametrize(
    ("columns", "starts", "shape"),
    [
        ([0, 3], [0, 2], [2, 2, 2]),  # one tap of each of two inputs
        ([0, 1], [0, 1, 2], [4, 2, 2]),  # the taps of an input in two rows
        ([1, 2], [0, 2], [2, 2, 2]),
    ],
)
def test_taps_of_different_inputs_make_no_block(columns: list[int], starts: list[int], shape: list[int]) -> None:
    """Nor do those of different outputs."""
    size = (shape[0], shape[1] * shape[2])
    matrix = torch.sparse_bsr_tensor(torch.tensor(starts), torch.tensor(columns), torch.ones(2, 2, 1), size=size)
    with pytest.raises(ValueError, match="all 2 taps"):
        PackedBlocks.from_bsr(matrix, torch.Size(shape))


def test_a_matrix_of_another_size() -> None:
    """Is no such weight."""
    with pytest.raises(ValueError, match=r"\(8, 8\) is no weight of shape \(8, 16\)"):
        PackedBlocks.from_bsr(torch.eye(8).to_sparse_bsr((4, 1)), torch.Size([8, 16]))


@pytest.mark.parametrize("shape", [(0, 16), (16, 0)])
def test_empty_weights_are_not_packed(shape: tuple[int, int]) -> None:
    """The message says so."""
    with pytest.raises(ValueError, match="holds nothing to pack"):
        PackedBlocks.pack(torch.empty(shape), Block1xN(4, 0.5))
