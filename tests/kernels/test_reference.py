"""The reference kernels against plain Python loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm.kernels import pack_bits
from lightning_nm.kernels.reference import decay_, densify_, nm_mask, nm_split_, resplit_, split_
from tests.kernels.cases import DTYPES, KINDS, PATTERNS, kinds, seeds, shapes, weight_of
from tests.oracles import bits_by_hand, hamming_by_hand, nm_mask_by_hand, raw, split_by_hand

SMALL_SHAPES = {"linear": (), "conv1d": (3,), "conv2d": (2, 3), "conv3d": (2, 1, 3)}


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, int, int, int]:
    """(weight, n, m, dim)"""
    m = draw(st.integers(1, 32))
    n = draw(st.integers(1, m))
    shape, dim = draw(shapes(m))
    return weight_of(draw(kinds), shape, draw(st.sampled_from(DTYPES)), draw(seeds)), n, m, dim


def no_bits(weight: torch.Tensor) -> torch.Tensor:
    return pack_bits(torch.zeros(weight.shape, dtype=torch.bool))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("taps", SMALL_SHAPES.values(), ids=SMALL_SHAPES.keys())
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_mask_is_the_sorted_one(n: int, m: int, taps: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    """Groups run along ``dim`` at a fixed tap; ties, and there are many here, go to the lowest index."""
    shape = (2 * m, 3, *taps) if dim == 0 else (3, 2 * m, *taps)
    weight = weight_of("ties", shape, dtype)
    assert torch.equal(nm_mask(weight, n, m, dim), nm_mask_by_hand(weight, n, m, dim))


@settings(deadline=None)
@given(case=cases())
def test_mask_of_any_weight_is_the_sorted_one(case: tuple[torch.Tensor, int, int, int]) -> None:
    """The same for any shape, pattern up to M = 32, dtype and finite value."""
    weight, n, m, dim = case
    assert torch.equal(nm_mask(weight, n, m, dim), nm_mask_by_hand(weight, n, m, dim))


@settings(deadline=None)
@given(case=cases())
def test_mask_keeps_exactly_n_of_every_group(case: tuple[torch.Tensor, int, int, int]) -> None:
    """Not one more and not one less, whatever ties."""
    weight, n, m, dim = case
    kept = nm_mask(weight, n, m, dim).movedim(dim, -1).reshape(-1, m).sum(1)
    assert (kept == n).all()


@pytest.mark.parametrize("value", [0.0, -0.0, 3.0, -3.0])
def test_mask_of_equal_entries_keeps_the_first(value: float) -> None:
    """A tie goes to the lowest index, zeros included."""
    mask = nm_mask(torch.full((2, 8), value), 2, 4, 1)
    assert mask.tolist() == [[True, True, False, False] * 2] * 2


def test_mask_sees_no_difference_between_the_zeros() -> None:
    """-0.0 and 0.0 tie."""
    assert nm_mask(torch.tensor([[-0.0, 0.0, 0.0, -0.0]]), 1, 4, 1).tolist() == [[True, False, False, False]]


def test_mask_along_a_dimension_counted_from_the_end() -> None:
    """-1 is the last one."""
    weight = weight_of("normal", (3, 2, 8), torch.float32)
    assert torch.equal(nm_mask(weight, 2, 4, -1), nm_mask(weight, 2, 4, 2))


def test_mask_does_not_see_the_memory_format() -> None:
    """A channels_last weight has the mask of its values."""
    weight = weight_of("ties", (4, 8, 3, 3), torch.float32)
    assert torch.equal(nm_mask(weight.to(memory_format=torch.channels_last), 2, 4, 1), nm_mask(weight, 2, 4, 1))


@settings(deadline=None)
@given(case=cases())
def test_split_takes_the_weight_apart(case: tuple[torch.Tensor, int, int, int]) -> None:
    """Weight and hidden are, bit for bit, what the loops say."""
    weight, n, m, dim = case
    sparse, hidden = split_by_hand(weight, nm_mask_by_hand(weight, n, m, dim))
    removed = torch.empty_like(weight)
    nm_split_(weight, removed, no_bits(weight), n, m, dim)
    assert torch.equal(raw(weight), raw(sparse))
    assert torch.equal(raw(removed), raw(hidden))


@settings(deadline=None)
@given(case=cases())
def test_weight_plus_hidden_is_the_dense_weight(case: tuple[torch.Tensor, int, int, int]) -> None:
    """Bit for bit, signs of zeros included."""
    dense, n, m, dim = case
    weight, hidden = dense.clone(), torch.empty_like(dense)
    nm_split_(weight, hidden, no_bits(dense), n, m, dim)
    assert torch.equal(raw(weight + hidden), raw(dense))


@settings(deadline=None)
@given(case=cases())
def test_split_packs_its_mask(case: tuple[torch.Tensor, int, int, int]) -> None:
    """The bits become the packed mask, spare bits zero."""
    weight, n, m, dim = case
    bits = no_bits(weight)
    expected = bits_by_hand(nm_mask_by_hand(weight, n, m, dim))
    nm_split_(weight, None, bits, n, m, dim)
    assert bits.tolist() == expected


@settings(deadline=None)
@given(case=cases(), seed=seeds)
def test_flips_are_the_hamming_distance_to_the_mask_before(case: tuple[torch.Tensor, int, int, int], seed: int) -> None:
    """SAD counts with these."""
    weight, n, m, dim = case
    before = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = hamming_by_hand(before, nm_mask_by_hand(weight, n, m, dim))
    flips, _ = nm_split_(weight, None, pack_bits(before), n, m, dim)
    assert int(flips) == expected


@settings(deadline=None)
@given(case=cases())
def test_split_of_a_sparse_weight_changes_nothing(case: tuple[torch.Tensor, int, int, int]) -> None:
    """Splitting twice is splitting once: no flip, the same weight."""
    weight, n, m, dim = case
    weight = torch.where(weight == 0, 1.0, weight)  # then exactly n non-zeros are kept in each group
    bits = no_bits(weight)
    nm_split_(weight, None, bits, n, m, dim)
    once = weight.clone()
    flips, _ = nm_split_(weight, None, bits, n, m, dim)
    assert int(flips) == 0
    assert torch.equal(raw(weight), raw(once))


@settings(deadline=None)
@given(case=cases(), seed=seeds)
def test_resplit_uses_the_mask_that_it_is_given(case: tuple[torch.Tensor, int, int, int], seed: int) -> None:
    """Any mask will do, and the bits stay."""
    weight = case[0]
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    sparse, hidden = split_by_hand(weight, mask)
    removed, bits = torch.empty_like(weight), pack_bits(mask)
    resplit_(weight, removed, bits)
    assert torch.equal(raw(weight), raw(sparse))
    assert torch.equal(raw(removed), raw(hidden))
    assert bits.tolist() == bits_by_hand(mask)


def test_resplit_without_hidden_only_masks() -> None:
    """What a masked gradient needs."""
    weight = weight_of("normal", (3, 8), torch.float32)
    mask = nm_mask_by_hand(weight, 1, 4).roll(1, 1)
    sparse, _ = split_by_hand(weight, mask)
    resplit_(weight, None, pack_bits(mask))
    assert torch.equal(raw(weight), raw(sparse))


def test_split_without_hidden_gives_the_same_weight() -> None:
    """hidden=None only drops the hidden part."""
    with_it = weight_of("ties", (3, 8), torch.float32)
    without = with_it.clone()
    nm_split_(with_it, torch.empty_like(with_it), no_bits(with_it), 2, 4, 1)
    nm_split_(without, None, no_bits(without), 2, 4, 1)
    assert torch.equal(raw(without), raw(with_it))


@pytest.mark.parametrize("kind", KINDS)
def test_split_of_a_channels_last_weight(kind: str) -> None:
    """The values are those of the row-major weight, and the memory format stays."""
    rows = weight_of(kind, (4, 8, 3, 3), torch.float32)
    weight = rows.to(memory_format=torch.channels_last)
    sparse, hidden = split_by_hand(rows, nm_mask_by_hand(rows, 2, 4))
    removed = torch.empty_like(weight)
    nm_split_(weight, removed, no_bits(weight), 2, 4, 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(raw(weight), raw(sparse))
    assert torch.equal(raw(removed), raw(hidden))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_entries_are_counted(dtype: torch.dtype) -> None:
    """NaN and both infinities, kept by the mask or not."""
    weight = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0], [1.0, torch.inf, 2.0, -torch.nan]], dtype=dtype)
    _, nonfinite = nm_split_(weight.clone(), None, no_bits(weight), 1, 4, 1)
    assert int(nonfinite) == 5
    assert int(resplit_(weight, None, no_bits(weight))) == 5


def test_largest_finite_entries_are_finite() -> None:
    """Counting nonfinite entries does not overflow on the way."""
    weight = torch.full((1, 8), torch.finfo(torch.float16).max, dtype=torch.float16)
    assert int(nm_split_(weight, None, no_bits(weight), 2, 4, 1)[1]) == 0


def test_counts_are_int64_scalars() -> None:
    """Nothing waits for a GPU until someone asks."""
    weight = weight_of("normal", (2, 4), torch.float32)
    for count in split_(weight, None, no_bits(weight), weight > 0):
        assert (count.dtype, count.shape) == (torch.int64, ())


@pytest.mark.parametrize("scale", [None, 8.0])
def test_decay_is_a_factor_of_the_hidden_part(scale: float | None) -> None:
    """Times the scale that is still on the gradient."""
    grad, hidden = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-0.0, 4.0, -2.0])
    decay_(grad, hidden, 0.5, None if scale is None else torch.tensor(scale))
    assert grad.tolist() == [1.0, 2.0 + 2.0 * (scale or 1), 3.0 - 1.0 * (scale or 1)]


@settings(deadline=None)
@given(case=cases())
def test_densify_is_the_split_backwards(case: tuple[torch.Tensor, int, int, int]) -> None:
    """The dense weight bit for bit, and the gradient term beside it."""
    dense, n, m, dim = case
    weight, hidden, grad = dense.clone(), torch.empty_like(dense), torch.zeros_like(dense)
    nm_split_(weight, hidden, no_bits(dense), n, m, dim)
    densify_(weight, hidden, grad, 1.0, None)
    assert torch.equal(raw(weight), raw(dense))
    assert torch.equal(grad, torch.where(nm_mask(dense, n, m, dim), 0.0, dense))
