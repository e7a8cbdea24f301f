"""The compiled product of packed 1xN weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import block_matmul
from lightning_nm.patterns import Block1xN
from lightning_nm.sparse import PackedBlocks
from tests.kernels.cpu.convolutions import convolutions, images


def assert_right(
    n: int, rows: int, inputs: int, batch: int, sparsity: float = 0.6, dtype: torch.dtype = torch.float32
) -> None:
    """Against float64, to the float32 accumulation's tolerance."""
    torch.manual_seed(0)
    weight, pattern = torch.randn(n * rows, inputs).to(dtype), Block1xN(n, sparsity)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    packed = PackedBlocks.pack(weight, pattern)
    arguments = packed.values[:, 0], packed.inputs, packed.starts
    x, bias = torch.randn(batch, inputs), torch.randn(n * rows)
    expected = x.double() @ weight.double().T
    assert block_matmul.supports(arguments[0])
    for added in (None, bias):
        out = block_matmul.matmul(x, *arguments, added)
        wanted = expected if added is None else expected + added
        torch.testing.assert_close(out.double(), wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32, 48, 64, 256])
@pytest.mark.parametrize("batch", [0, 1, 2, 5, 8, 13])
def test_block_sizes_and_batches(n: int, batch: int) -> None:
    """Whole tiles of rows, and what is left over."""
    assert_right(n, 3, 20, batch)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 9), st.floats(0, 0.99))
def test_any_size(rows: int, inputs: int, batch: int, sparsity: float) -> None:
    """Rows of blocks may be empty."""
    assert_right(16, rows, inputs, batch, sparsity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 4, 8, 32])
def test_stored_dtypes(n: int, dtype: torch.dtype) -> None:
    """Half-precision weights are multiplied as the floats that they are."""
    assert_right(n, 4, 64, 6, dtype=dtype)


def test_more_inputs_than_sixteen_bits_count() -> None:
    """Their numbers take four bytes."""
    assert_right(16, 1, 40_000, 2, sparsity=0.99)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int) -> None:
    """As many as torch has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_right(16, 9, 64, 9)
    finally:
        torch.set_num_threads(before)


def test_values_anywhere_in_memory() -> None:
    """Kernels read whole aligned vectors: what lies elsewhere is copied."""
    values = torch.randn(4 * 16 + 1)[1:].view(4, 16)
    inputs, starts = torch.tensor([0, 1, 2, 3], dtype=torch.int16), torch.tensor([0, 4], dtype=torch.int32)
    x = torch.randn(2, 4)
    torch.testing.assert_close(block_matmul.matmul(x, values, inputs, starts, None), x @ values, atol=1e-5, rtol=1e-5)


def test_what_is_left_to_others() -> None:
    """Blocks of odd sizes, and float64."""
    assert not block_matmul.supports(torch.empty(0, 12))
    assert not block_matmul.supports(torch.empty(0, 16, dtype=torch.float64))


def assert_convolves(
    convolution: Convolution,
    sizes: tuple[int, ...],
    channels: int = 8,
    n: int = 16,
    rows: int = 2,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> None:
    """Against float64, to the float32 accumulation's tolerance."""
    torch.manual_seed(0)
    weight, pattern = torch.randn(n * rows, channels // convolution.groups, *convolution.kernel), Block1xN(n, 0.6)
    weight = torch.where(pattern.mask(weight), weight, 0.0).to(dtype)
    packed = PackedBlocks.pack(weight, pattern)
    x, bias = images(batch, channels, sizes, channels_last), torch.randn(n * rows)
    assert block_matmul.fits(packed.starts, convolution)
    out = block_matmul.convolution(x, packed.values, packed.inputs, packed.starts, bias, convolution)
    expected = convolution.dense(x.double(), weight.double(), bias.double())
    assert out.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(convolutions(), st.integers(1, 20), st.integers(0, 3), st.booleans())
def test_convolutions(
    case: tuple[Convolution, tuple[int, ...]], channels: int, batch: int, channels_last: bool
) -> None:
    """Of any size in one, two and three dimensions, wherever their channels lie."""
    assert_convolves(*case, channels=channels, batch=batch, channels_last=channels_last)


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32, 64, 256])
@pytest.mark.parametrize("kernel", [1, 3])
def test_block_sizes_of_convolutions(kernel: int, n: int) -> None:
    """With one tap and with several."""
    assert_convolves(Convolution((kernel,) * 2, (1, 1), (1, 1), (1, 1), 1), (5, 6), n=n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_grouped_convolutions(kernel: int, dtype: torch.dtype) -> None:
    """Each group of outputs sees its own inputs."""
    convolution = Convolution((kernel, kernel), (1, 1), (0, 0), (1, 1), 2)
    assert_convolves(convolution, (5, 5), channels=32, rows=4, batch=2, dtype=dtype)
    assert not block_matmul.fits(torch.zeros(4), convolution)


def test_other_defaults_of_torch_change_nothing() -> None:
    """Neither its dtype nor its device, for padded images too."""
    convolution = Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)
    weight = torch.where(Block1xN(16, 0.5).mask(dense := torch.randn(16, 7, 3, 3)), dense, 0.0)
    packed, x = PackedBlocks.pack(weight, Block1xN(16, 0.5)), torch.randn(1, 7, 4, 11)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            out = block_matmul.convolution(x, packed.values, packed.inputs, packed.starts, None, convolution)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(out, convolution.dense(x, weight, None), atol=1e-4, rtol=1e-5)
