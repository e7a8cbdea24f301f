"""Packed 1xN weights times columns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("llvmlite")

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import block_columns, columns, emit
from lightning_nm.patterns import Block1xN
from lightning_nm.sparse import PackedBlocks
from tests.kernels.cpu.test_columns import convolutions

THREE = Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)


def sparse(shape: tuple[int, ...], n: int, sparsity: float, dtype: torch.dtype) -> tuple[Tensor, PackedBlocks]:
    torch.manual_seed(0)
    weight, pattern = torch.randn(shape).to(dtype), Block1xN(n, sparsity)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    return weight, PackedBlocks.pack(weight, pattern)


def assert_right(
    n: int,
    rows: int,
    inputs: int,
    batch: int,
    sizes: tuple[int, ...],
    convolution: Convolution,
    sparsity: float = 0.6,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Against float64, to the float32 accumulation's tolerance."""
    shape = (n * rows, inputs // convolution.groups, *convolution.kernel)
    weight, packed = sparse(shape, n, sparsity, dtype)
    x, bias = torch.randn(batch, inputs, *sizes), torch.randn(n * rows)
    assert block_columns.supports(packed.values, n * rows, convolution.groups)
    for added in (None, bias):
        out = block_columns.convolution(x, packed.values, packed.inputs, packed.starts, added, convolution)
        expected = convolution.dense(x.double(), weight.double(), None if added is None else added.double())
        assert out.is_contiguous()
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 12, 16, 31, 32, 48])
@pytest.mark.parametrize("size", [1, 3, 4, 7, 14, 20])
def test_block_sizes(n: int, size: int) -> None:
    """Any N, and images that take any number of vectors."""
    assert_right(n, 3, 6, 2, (size, size), THREE)


@settings(deadline=None, max_examples=40)
@given(convolutions(), st.sampled_from([1, 2, 4, 5, 16]), st.integers(1, 9), st.integers(0, 3), st.floats(0, 0.99))
def test_any_convolution(
    drawn: tuple[Convolution, tuple[int, ...]], n: int, inputs: int, batch: int, sparsity: float
) -> None:
    """Of 1 to 3 dimensions, any stride, padding and dilation; of an empty batch; of rows without blocks."""
    convolution, sizes = drawn
    assert_right(n, 3, inputs, batch, sizes, convolution, sparsity)


@settings(deadline=None, max_examples=15)
@given(convolutions(groups=2), st.sampled_from([1, 4, 8]), st.integers(1, 2))
def test_groups(drawn: tuple[Convolution, tuple[int, ...]], n: int, batch: int) -> None:
    """Of the convolution, each with inputs of its own."""
    convolution, sizes = drawn
    assert_right(n, 4, 16, batch, sizes, convolution)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_dtypes(dtype: torch.dtype) -> None:
    """Half-precision weights are multiplied as the floats that they are."""
    assert_right(4, 8, 32, 2, (9, 9), THREE, dtype=dtype)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int) -> None:
    """As many as torch has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_right(8, 9, 32, 3, (12, 12), THREE)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("features", [{"avx512f", "avx2"}, {"avx2"}, set()], ids=["AVX-512", "AVX2", "any processor"])
def test_every_processor(features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the instructions that it has."""
    if not features <= emit.features():
        pytest.skip(f"this processor has no {features - emit.features()}")
    for module in (emit, columns):
        monkeypatch.setattr(module, "features", lambda: features)
    caches = block_columns._kernel, block_columns._plan
    try:
        for cache in caches:
            cache.cache_clear()
        assert_right(4, 6, 16, 2, (5, 9), THREE)
    finally:
        for cache in caches:
            cache.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_of_any_layout_and_dtype(dtype: torch.dtype) -> None:
    """The result has the input's dtype and is contiguous."""
    weight, packed = sparse((16, 8, 3, 3), 4, 0.5, torch.float32)
    x = torch.randn(2, 8, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    out = block_columns.convolution(x, packed.values, packed.inputs, packed.starts, None, THREE)
    assert out.dtype == dtype
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), THREE.dense(x.double(), weight.double(), None), atol=0.1, rtol=0.02)


def test_defaults_of_torch_do_not_matter() -> None:
    """What a kernel needs for itself is float32 and lies on the CPU."""
    weight, packed = sparse((16, 8, 3, 3), 4, 0.5, torch.float32)
    x = torch.randn(1, 8, 11, 13)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            out = block_columns.convolution(x, packed.values, packed.inputs, packed.starts, None, THREE)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(out, THREE.dense(x, weight, None), atol=1e-4, rtol=1e-5)


def test_more_inputs_than_sixteen_bits_count() -> None:
    """Their numbers take four bytes."""
    assert_right(2, 1, 40_000, 1, (4,), Convolution((1,), (1,), (0,), (1,), 1), sparsity=0.999)


@pytest.mark.parametrize("inputs", [[-1, 20_000, 3, 7], [7, 7, 0, -5]])
@pytest.mark.parametrize("starts", [[0, 4], [0, 1000], [-5, -1], [3, 1]])
def test_wrong_indices_read_nothing_beyond(inputs: list[int], starts: list[int]) -> None:
    """Blocks and inputs end where the tensors do."""
    x, values = torch.randn(1, 8, 5, 5), torch.randn(4, 9, 4)
    arguments = torch.tensor(inputs, dtype=torch.int16), torch.tensor(starts, dtype=torch.int32)
    assert block_columns.convolution(x, values, *arguments, None, THREE).shape == (1, 4, 5, 5)


@pytest.mark.parametrize("batch", [0, 1, 16, 50])
@pytest.mark.parametrize("n", [1, 4, 8, 32])
def test_matmul(n: int, batch: int) -> None:
    """Of any batch and any strides."""
    weight, packed = sparse((n * 5, 40), n, 0.5, torch.float32)
    x, bias = torch.randn(40, batch).T, torch.randn(n * 5)
    for added in (None, bias):
        out = block_columns.matmul(x, packed.values[:, 0], packed.inputs, packed.starts, added)
        expected = x.double() @ weight.double().T + (0 if added is None else added)
        assert out.is_contiguous()
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


def test_nothing_to_multiply() -> None:
    """No inputs: the bias."""
    empty = torch.empty(0, 4), torch.empty(0, dtype=torch.int16), torch.zeros(3, dtype=torch.int32)
    bias = torch.randn(8)
    assert torch.equal(block_columns.matmul(torch.empty(3, 0), *empty, bias), bias.expand(3, 8))


def test_what_is_left_to_others() -> None:
    """float64, and blocks that lie in two groups."""
    assert not block_columns.supports(torch.empty(0, 1, 4, dtype=torch.float64), 32, 1)
    assert block_columns.supports(torch.empty(0, 1, 4), 8, 2)
    assert not block_columns.supports(torch.empty(0, 1, 4), 12, 2)
