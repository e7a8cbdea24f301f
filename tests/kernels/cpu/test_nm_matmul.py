"""The compiled product of packed N:M weights."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lightning_nm.kernels import packed_nm
from lightning_nm.kernels.convolution import Convolution, filters
from lightning_nm.kernels.cpu import emit, nm_matmul
from lightning_nm.kernels.cpu.rows import matrix_rows
from lightning_nm.kernels.cpu.stored import nothing
from lightning_nm.kernels.packed_nm import Layout, pack
from tests.kernels.cpu.convolutions import convolutions, images
from tests.kernels.test_packed_nm import PATTERNS, sparse


def assert_right(outputs: int, inputs: int, n: int, m: int, batch: int, dtype: torch.dtype = torch.float32) -> None:
    """Against float64, to the float32 accumulation's tolerance."""
    rows, mask = sparse(outputs, inputs, n, m, dtype)
    layout = Layout.of(n, m, inputs)
    x, bias = torch.randn(batch, inputs), torch.randn(outputs)
    expected = x.double() @ rows.double().T
    packed = pack(rows, mask, layout)
    out = nm_matmul.matmul(x, *packed, bias, layout, outputs)
    assert out.shape == (batch, outputs)
    torch.testing.assert_close(out.double(), expected + bias, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        nm_matmul.matmul(x, *packed, None, layout, outputs).double(), expected, atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(("outputs", "groups"), [(64, 8), (1, 1), (70, 5)])
def test_every_pattern(outputs: int, groups: int, n: int, m: int) -> None:
    """Outputs and inputs that fill no whole register, too."""
    assert_right(outputs, groups * m, n, m, 5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 150), st.integers(1, 40), st.integers(0, 9), st.sampled_from([(2, 4), (1, 4), (3, 8)]))
def test_any_size(outputs: int, groups: int, batch: int, pattern: tuple[int, int]) -> None:
    """Of batches, an empty one too."""
    assert_right(outputs, groups * pattern[1], *pattern, batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_dtypes(dtype: torch.dtype) -> None:
    """Half-precision weights are multiplied as the floats that they are."""
    assert_right(40, 64, 2, 4, 6, dtype)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int) -> None:
    """As many as torch has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_right(200, 64, 2, 4, 9)
    finally:
        torch.set_num_threads(before)


def test_inputs_of_any_stride_and_dtype() -> None:
    """The result has the input's dtype."""
    rows, mask = sparse(32, 64, 2, 4)
    layout = Layout.of(2, 4, 64)
    packed = pack(rows, mask, layout)
    x = torch.randn(64, 6)
    torch.testing.assert_close(nm_matmul.matmul(x.T, *packed, None, layout, 32), x.T @ rows.T, atol=1e-4, rtol=1e-5)
    half = nm_matmul.matmul(x.T.bfloat16(), *packed, None, layout, 32)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), x.T.bfloat16().float() @ rows.T, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("features", [{"avx512f", "avx2"}, {"avx2"}, set()], ids=["AVX-512", "AVX2", "any processor"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (5, 32)])
def test_every_processor(n: int, m: int, features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the instructions that it has."""
    if not features <= emit.features():
        pytest.skip(f"this processor has no {features - emit.features()}")
    monkeypatch.setattr(emit, "features", lambda: features)
    nm_matmul._kernel.cache_clear()
    try:
        assert_right(40, 6 * m, n, m, 5)
    finally:
        nm_matmul._kernel.cache_clear()


def test_supported_dtypes() -> None:
    """float64 is left to others."""
    assert nm_matmul.supports(torch.empty(0, dtype=torch.bfloat16))
    assert not nm_matmul.supports(torch.empty(0, dtype=torch.float64))


def test_the_reference_agrees() -> None:
    """Same layout, same numbers."""
    rows, mask = sparse(48, 96, 1, 4)
    layout = Layout.of(1, 4, 96)
    packed = pack(rows, mask, layout)
    x, bias = torch.randn(7, 96), torch.randn(48)
    expected = packed_nm.matmul(x, *packed, bias, layout, 48)
    torch.testing.assert_close(nm_matmul.matmul(x, *packed, bias, layout, 48), expected, atol=1e-4, rtol=1e-5)


def assert_convolves(
    convolution: Convolution,
    sizes: tuple[int, ...],
    channels: int = 8,
    outputs: int = 24,
    batch: int = 1,
    pattern: tuple[int, int] = (2, 4),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> None:
    """Against float64, to the float32 accumulation's tolerance."""
    taps, inputs = prod(convolution.kernel), channels // convolution.groups
    rows, mask = sparse(outputs, taps * inputs, *pattern, dtype)
    layout = Layout.of(*pattern, taps * inputs, taps)
    x, bias = images(batch, channels, sizes, channels_last), torch.randn(outputs)
    assert nm_matmul.fits(layout, outputs, convolution)
    out = nm_matmul.convolution(x, *pack(rows, mask, layout), bias, layout, outputs, convolution)
    expected = convolution.dense(x.double(), filters(rows, convolution.kernel).double(), bias.double())
    assert out.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(convolutions(), st.integers(1, 5), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_convolutions(
    case: tuple[Convolution, tuple[int, ...]], groups: int, outputs: int, batch: int, channels_last: bool
) -> None:
    """Of any size in one, two and three dimensions, wherever their channels lie."""
    assert_convolves(*case, channels=4 * groups, outputs=outputs, batch=batch, channels_last=channels_last)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 7), (1, 16), (2, 20), (5, 32)])
def test_patterns_of_convolutions(n: int, m: int) -> None:
    """No window crosses taps, however wide."""
    assert_convolves(Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1), (5, 6), channels=3 * m, pattern=(n, m))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_grouped_convolutions(kernel: int, dtype: torch.dtype) -> None:
    """Each group of outputs sees its own inputs."""
    convolution = Convolution((kernel, kernel), (1, 1), (0, 0), (1, 1), 2)
    assert_convolves(convolution, (5, 5), channels=32, outputs=64, batch=2, dtype=dtype)


def test_groups_that_are_left_to_others() -> None:
    """They share lanes, or windows."""
    two = Convolution((1,), (1,), (0,), (1,), 2)
    assert not nm_matmul.fits(Layout.of(2, 4, 16), 24, two)
    assert not nm_matmul.fits(Layout.of(2, 4, 20), 32, two)
    assert nm_matmul.fits(Layout.of(2, 4, 16), 32, two)


@pytest.mark.parametrize("inputs", [4, 16, 20, 24])
def test_rows_keep_to_themselves(inputs: int) -> None:
    """Infinity in one row of x is not met by another, nor is what lies behind x."""
    rows, mask = sparse(20, inputs, 2, 4)
    layout = Layout.of(2, 4, inputs)
    memory = torch.full((4 * inputs,), torch.inf)
    x = memory[: 3 * inputs].view(3, inputs)
    x[:2] = torch.randn(2, inputs)
    out = nm_matmul.matmul(x, *pack(rows, mask, layout), None, layout, 20)
    torch.testing.assert_close(out[:2], x[:2] @ rows.T, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("outputs", [1, 15, 17, 70])
def test_nothing_is_written_beside_the_outputs(outputs: int) -> None:
    """The lanes that fill up the last group are no outputs."""
    rows, mask = sparse(outputs, 32, 2, 4)
    layout = Layout.of(2, 4, 32)
    x, bias = torch.randn(30, 32), torch.randn(outputs)
    out = nm_matmul.matmul(x, *pack(rows, mask, layout), bias, layout, outputs)
    torch.testing.assert_close(out, x @ rows.T + bias, atol=1e-4, rtol=1e-5)


def test_other_defaults_of_torch_change_nothing() -> None:
    """Neither its dtype nor its device: the kernels' own memory is the CPU's, and float32."""
    rows, mask = sparse(24, 48, 2, 4)
    layout = Layout.of(2, 4, 48)
    packed, x = pack(rows, mask, layout), torch.randn(3, 48)
    for cached in (matrix_rows, nm_matmul._plan, nothing):
        cached.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            out = nm_matmul.matmul(x, *packed, None, layout, 24)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(out, x @ rows.T, atol=1e-4, rtol=1e-5)
