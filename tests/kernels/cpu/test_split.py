"""The compiled CPU kernels against the reference: same weights, hidden parts, bits and counts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_nm.kernels import pack_bits, reference
from tests.kernels.cases import DTYPES, KINDS, kinds, seeds, shapes, weight_of
from tests.oracles import nm_mask_by_hand, raw, split_by_hand

pytest.importorskip("numba")

from lightning_nm.kernels.cpu import split as compiled

# Each pair is compiled at its first use. Vectors and what they leave over, groups that fit no
# vector (3:7, 5:5), and the dtype that has none (fp64) are all here.
VARIANTS = [
    (torch.float32, 2, 4),
    (torch.bfloat16, 2, 4),
    (torch.float16, 1, 4),
    (torch.float32, 4, 8),
    (torch.bfloat16, 2, 8),
    (torch.float32, 1, 16),
    (torch.float16, 8, 16),
    (torch.float64, 2, 4),
    (torch.float32, 3, 7),
    (torch.bfloat16, 5, 5),
    (torch.float32, 1, 1),
    (torch.float32, 3, 32),
]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int, int]:
    """(weight, packed mask before, n, m, dim)"""
    dtype, n, m = draw(st.sampled_from(VARIANTS))
    shape, dim = draw(shapes(m))
    seed = draw(seeds)
    before = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return weight_of(draw(kinds), shape, dtype, seed), pack_bits(before), n, m, dim


def run(kernel, weight: Tensor, bits: Tensor, *args: int, hidden: bool = True) -> list[list[int] | int]:
    """Everything that a kernel writes and returns, as integers, from copies of its arguments."""
    weight, bits = weight.clone(), bits.clone()
    removed = torch.empty_like(weight) if hidden else None
    counts = kernel(weight, removed, bits, *args)
    written = [t for t in (weight, removed) if t is not None]
    counts = counts if isinstance(counts, tuple) else (counts,)
    return [*(raw(t).tolist() for t in written), bits.tolist(), *map(int, counts)]


@settings(deadline=None, max_examples=300)
@given(case=cases())
def test_split_equals_the_reference(case: tuple[Tensor, Tensor, int, int, int]) -> None:
    """Every bit and every count, for any shape, dimension and finite value."""
    weight, bits, *nm_dim = case
    assert run(compiled.nm_split_, weight, bits, *nm_dim) == run(reference.nm_split_, weight, bits, *nm_dim)


@settings(deadline=None)
@given(case=cases())
def test_resplit_equals_the_reference(case: tuple[Tensor, Tensor, int, int, int]) -> None:
    """The same with the mask given."""
    weight, bits, *_ = case
    assert run(compiled.resplit_, weight, bits) == run(reference.resplit_, weight, bits)


@pytest.mark.parametrize(("dtype", "n", "m"), [(torch.float32, 2, 4), (torch.float64, 2, 4), (torch.float32, 3, 7)])
@pytest.mark.parametrize("kernel", ["nm_split_", "resplit_"])
def test_no_hidden_equals_the_reference(kernel: str, dtype: torch.dtype, n: int, m: int) -> None:
    """hidden=None is its own compiled variant."""
    weight = weight_of("ties", (3, 3 * m), dtype)
    bits = pack_bits(weight_of("normal", weight.shape, torch.float32) > 0)
    args = (n, m, 1) if kernel == "nm_split_" else ()
    expected = run(getattr(reference, kernel), weight, bits, *args, hidden=False)
    assert run(getattr(compiled, kernel), weight, bits, *args, hidden=False) == expected


@pytest.mark.parametrize(("dtype", "n", "m"), VARIANTS, ids=str)
def test_weight_plus_hidden_is_the_dense_weight(dtype: torch.dtype, n: int, m: int) -> None:
    """Bit for bit, signs of zeros included."""
    dense = weight_of("ties", (5, 3 * m), dtype)
    weight, hidden = dense.clone(), torch.empty_like(dense)
    compiled.nm_split_(weight, hidden, pack_bits(torch.zeros_like(dense, dtype=torch.bool)), n, m, 1)
    assert torch.equal(raw(weight + hidden), raw(dense))


@pytest.mark.parametrize("entries", [4, 16, 20, 28, 32, 36])
def test_what_whole_vectors_leave_over(entries: int) -> None:
    """Sizes around multiples of 16 entries."""
    weight = weight_of("ties", (1, entries), torch.float32)
    sparse, hidden = split_by_hand(weight, nm_mask_by_hand(weight, 2, 4))
    removed, bits = torch.empty_like(weight), pack_bits(torch.zeros_like(weight, dtype=torch.bool))
    compiled.nm_split_(weight, removed, bits, 2, 4, 1)
    assert torch.equal(raw(weight), raw(sparse))
    assert torch.equal(raw(removed), raw(hidden))


@pytest.mark.parametrize("entries", [12, 16, 20])
@pytest.mark.parametrize("dim", [0, 1])
def test_nothing_is_written_beyond_the_weight(dim: int, entries: int) -> None:
    """The memory behind a view stays as it was."""
    shape = (1, entries) if dim == 1 else (entries, 1)
    buffers = [torch.full((entries + 32,), 7.0), torch.full((entries + 32,), 7.0)]
    bits = torch.full(((entries + 7) // 8 + 8,), 0, dtype=torch.uint8)
    weight, hidden = (b[:entries].view(shape) for b in buffers)
    compiled.nm_split_(weight, hidden, bits[: (entries + 7) // 8], 2, 4, dim)
    assert all((b[entries:] == 7.0).all() for b in buffers)
    assert not bits[(entries + 7) // 8 :].any()


def test_a_row_cut_from_a_matrix_keeps_to_itself() -> None:
    """A dimension of size 1 may have any stride, and torch still calls the tensor contiguous."""
    hidden, weight = torch.full((4, 32), 7.0), torch.ones(4, 32)
    compiled.nm_split_(weight[:1, :4], hidden[:1, :4], torch.zeros(1, dtype=torch.uint8), 1, 1, 0)
    assert (hidden.view(-1)[4:] == 7.0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 1])
def test_channels_last_equals_the_reference(dim: int, kind: str) -> None:
    """Memory formats change nothing but speed."""
    weight = weight_of(kind, (4, 8, 3, 3), torch.float32).to(memory_format=torch.channels_last)
    bits = pack_bits(weight > 0)
    assert run(compiled.nm_split_, weight, bits, 2, 4, dim) == run(reference.nm_split_, weight, bits, 2, 4, dim)


def test_channels_last_stays_channels_last() -> None:
    """The parameter keeps its memory format."""
    weight = weight_of("normal", (4, 8, 3, 3), torch.float32).to(memory_format=torch.channels_last)
    compiled.nm_split_(weight, None, pack_bits(torch.zeros_like(weight, dtype=torch.bool)), 2, 4, 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("strided", ["weight", "hidden"])
def test_a_view_with_gaps_equals_the_reference(strided: str) -> None:
    """Every second column of a wider matrix is a weight too; the columns between stay as they were."""
    wide = {"weight": torch.full((3, 40), 7.0), "hidden": torch.full((3, 40), 7.0)}
    views = {name: w[:, ::2] if name == strided else w[:, :20].clone() for name, w in wide.items()}
    views["weight"].copy_(weight_of("ties", (3, 20), torch.float32))
    sparse, removed = split_by_hand(views["weight"], nm_mask_by_hand(views["weight"], 2, 4))
    compiled.nm_split_(views["weight"], views["hidden"], torch.zeros(8, dtype=torch.uint8), 2, 4, 1)
    assert torch.equal(raw(views["weight"]), raw(sparse))
    assert torch.equal(raw(views["hidden"]), raw(removed))
    assert (wide[strided][:, 1::2] == 7.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", ["nm_split_", "resplit_"])
def test_nonfinite_entries_are_counted(kernel: str, dtype: torch.dtype) -> None:
    """NaN and both infinities, in a whole vector and in what is left over."""
    weight = torch.zeros(1, 24, dtype=dtype)
    weight[0, [1, 5, 14, 17, 23]] = torch.tensor([torch.nan, torch.inf, -torch.inf, -torch.nan, torch.inf], dtype=dtype)
    weight[0, [2, 18]] = torch.finfo(dtype).max
    args = (2, 4, 1) if kernel == "nm_split_" else ()
    assert run(getattr(compiled, kernel), weight, torch.zeros(3, dtype=torch.uint8), *args)[-1] == 5


def test_counts_are_integers() -> None:
    """On a CPU there is nothing to wait for."""
    weight = weight_of("normal", (2, 20), torch.float32)
    counts = compiled.nm_split_(weight, None, torch.zeros(5, dtype=torch.uint8), 2, 4, 1)
    assert [type(c) for c in counts] == [int, int]


def test_a_parameter_can_be_split() -> None:
    """A leaf that requires grad is split in place like any tensor."""
    weight = torch.nn.Parameter(weight_of("normal", (2, 16), torch.float32))
    sparse, _ = split_by_hand(weight, nm_mask_by_hand(weight, 2, 4))
    compiled.nm_split_(weight, None, torch.zeros(4, dtype=torch.uint8), 2, 4, 1)
    assert torch.equal(raw(weight), raw(sparse))


@pytest.mark.parametrize(("dtype", "expected"), [*((d, True) for d in DTYPES), (torch.int32, False)], ids=str)
def test_supports_the_float_dtypes(dtype: torch.dtype, expected: bool) -> None:
    """Anything else goes to the reference."""
    assert compiled.supports(torch.zeros(4, dtype=dtype)) is expected
