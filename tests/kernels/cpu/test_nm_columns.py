"""Packed N:M weights times columns."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llvmlite")

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu import columns, emit, nm_columns
from lightning_nm.patterns import NM
from lightning_nm.sparse import PackedNM
from tests.kernels.cpu.test_columns import convolutions
from tests.kernels.test_packed_nm import PATTERNS

POINTS = Convolution((1, 1), (1, 1), (0, 0), (1, 1), 1)
THREE = Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1)


def assert_right(
    pattern: NM,
    outputs: int,
    inputs: int,
    batch: int,
    sizes: tuple[int, ...],
    convolution: Convolution,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Against float64, to the float32 accumulation's tolerance."""
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs // convolution.groups, *convolution.kernel).to(dtype)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    packed = PackedNM.pack(weight, pattern)
    x, bias = torch.randn(batch, inputs, *sizes), torch.randn(outputs)
    assert nm_columns.supports(packed.values, outputs, convolution.groups)
    for added in (None, bias):
        arguments = packed.values, packed.positions, added, packed.layout, outputs, convolution
        out = nm_columns.convolution(x, *arguments)
        expected = convolution.dense(x.double(), weight.double(), None if added is None else added.double())
        assert out.is_contiguous()
        torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_every_pattern(n: int, m: int) -> None:
    """Of outputs that fill no whole vector, too."""
    assert_right(NM(n, m), 40, 3 * m, 2, (5, 7), THREE)


@settings(deadline=None, max_examples=40)
@given(convolutions(), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_any_convolution(drawn: tuple[Convolution, tuple[int, ...]], outputs: int, groups: int, batch: int) -> None:
    """Of 1 to 3 dimensions, any stride, padding and dilation; of an empty batch."""
    convolution, sizes = drawn
    assert_right(NM(2, 4), outputs, 4 * groups, batch, sizes, convolution)


@settings(deadline=None, max_examples=15)
@given(convolutions(groups=2), st.sampled_from([32, 96]), st.integers(1, 2))
def test_groups(drawn: tuple[Convolution, tuple[int, ...]], outputs: int, batch: int) -> None:
    """Of the convolution, each with inputs of its own."""
    convolution, sizes = drawn
    assert_right(NM(1, 4), outputs, 16, batch, sizes, convolution)


def test_sums_wait_while_the_next_inputs_are_copied() -> None:
    """More inputs than the cache holds, and more groups of outputs than a unit has."""
    assert_right(NM(2, 4), 530, 512, 1, (7, 7), POINTS)
    assert_right(NM(1, 4), 48, 128, 2, (14, 14), THREE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_dtypes(dtype: torch.dtype) -> None:
    """Half-precision weights are multiplied as the floats that they are."""
    assert_right(NM(2, 4), 32, 64, 2, (9, 9), THREE, dtype)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int) -> None:
    """As many as torch has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_right(NM(2, 4), 80, 64, 3, (12, 12), THREE)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("features", [{"avx512f", "avx2"}, {"avx2"}, set()], ids=["AVX-512", "AVX2", "any processor"])
def test_every_processor(features: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the instructions that it has."""
    if not features <= emit.features():
        pytest.skip(f"this processor has no {features - emit.features()}")
    for module in (emit, columns):
        monkeypatch.setattr(module, "features", lambda: features)
    caches = nm_columns._kernel, nm_columns._plan
    try:
        for cache in caches:
            cache.cache_clear()
        assert_right(NM(2, 4), 40, 32, 2, (5, 9), THREE)
    finally:
        for cache in caches:
            cache.cache_clear()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_of_any_layout_and_dtype(dtype: torch.dtype) -> None:
    """The result has the input's dtype and is contiguous."""
    pattern = NM(2, 4)
    weight = torch.randn(16, 8, 3, 3)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    packed = PackedNM.pack(weight, pattern)
    x = torch.randn(2, 8, 6, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    out = nm_columns.convolution(x, packed.values, packed.positions, None, packed.layout, 16, THREE)
    assert out.dtype == dtype
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), THREE.dense(x.double(), weight.double(), None), atol=0.1, rtol=0.02)


def test_defaults_of_torch_do_not_matter() -> None:
    """What a kernel needs for itself is float32 and lies on the CPU."""
    pattern, x = NM(2, 4), torch.randn(1, 8, 11, 13)
    weight = torch.randn(20, 8, 3, 3)
    weight = torch.where(pattern.mask(weight), weight, 0.0)
    packed = PackedNM.pack(weight, pattern)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            out = nm_columns.convolution(x, packed.values, packed.positions, None, packed.layout, 20, THREE)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(out, THREE.dense(x, weight, None), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 7), (5, 32)])
def test_wrong_positions_read_nothing_beyond(n: int, m: int) -> None:
    """Whatever a position says, it is one of the kernel's own rows."""
    pattern = NM(n, m)
    weight = torch.randn(16, 4 * m, 1, 1)
    packed = PackedNM.pack(torch.where(pattern.mask(weight), weight, 0.0), pattern)
    wrong = torch.full_like(packed.positions, -1)
    x = torch.randn(1, 4 * m, 40, 40)
    out = nm_columns.convolution(x, packed.values, wrong, None, packed.layout, 16, POINTS)
    assert out.shape == (1, 16, 40, 40)


def test_what_is_left_to_others() -> None:
    """float64, and sixteen outputs that lie in two groups."""
    assert not nm_columns.supports(torch.empty(0, dtype=torch.float64), 32, 1)
    assert nm_columns.supports(torch.empty(0), 40, 1)
    assert not nm_columns.supports(torch.empty(0), 48, 2)
