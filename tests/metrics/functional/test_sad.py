"""Sparse Architecture Divergence of two moments, against plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_nm.metrics.functional import sparse_architecture_divergence
from lightning_nm.patterns import PackedMask
from tests.kernels.cases import PATTERNS
from tests.oracles import hamming_by_hand, nm_mask_by_hand


def exact(n: int, m: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """A random mask that keeps exactly n of every m."""
    return nm_mask_by_hand(torch.rand(shape, generator=torch.Generator().manual_seed(seed)), n, m)


@settings(deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), seed=st.integers(0, 999), share=st.floats(0, 1))
def test_count_and_fractions_of_any_two_masks(shape: list[int], seed: int, share: float) -> None:
    """By hand: the distance, over all entries, and over the largest distance of two masks so full."""
    random = torch.Generator().manual_seed(seed)
    before, after = (torch.rand(shape, generator=random) < share for _ in range(2))
    count, numel = hamming_by_hand(before, after), before.numel()
    kept = sum(before.flatten().tolist()) + sum(after.flatten().tolist())
    largest = min(kept, 2 * numel - kept)
    sad = sparse_architecture_divergence(before, after)
    assert {key: value.item() for key, value in sad.items()} == {
        "count": count,
        "fraction": count / numel,
        "fraction_of_max": count / largest if largest else 0.0,
    }


@pytest.mark.parametrize(("n", "m"), [p for p in PATTERNS if p[0] < p[1]])
def test_fraction_of_max_of_exact_masks(n: int, m: int) -> None:
    """The largest SAD of two exact N:M masks is 2 min(N, M-N) / M of all entries."""
    before, after = exact(n, m, (6, 2 * m), 0), exact(n, m, (6, 2 * m), 1)
    largest = 2 * min(n, m - n) / m * before.numel()
    sad = sparse_architecture_divergence(before, after)
    assert sad["fraction_of_max"].item() == pytest.approx(hamming_by_hand(before, after) / largest, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (3, 4)])
def test_masks_as_far_apart_as_can_be(n: int, m: int) -> None:
    """The largest is reached, and is 1."""
    before = (torch.arange(m) < n).repeat(3, 2)
    assert sparse_architecture_divergence(before, before.flip(1))["fraction_of_max"].item() == 1.0


@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_count_of_exact_masks_is_even(n: int, m: int) -> None:
    """Every entry that comes makes another go."""
    sad = sparse_architecture_divergence(exact(n, m, (5, 3 * m), 0), exact(n, m, (5, 3 * m), 1))
    assert sad["count"].item() % 2 == 0


def test_random_masks_differ_in_half_of_the_entries() -> None:
    """2 (N/M) (1 - N/M) = 0.5 at 2:4: the mark that a converged SAD is read against."""
    before, after = exact(2, 4, (64, 256), 0), exact(2, 4, (64, 256), 1)
    assert sparse_architecture_divergence(before, after)["fraction"].item() == pytest.approx(0.5, abs=0.02)


def test_the_same_mask_is_no_distance_away() -> None:
    """0, in every number."""
    mask = exact(2, 4, (3, 8), 0)
    assert [v.item() for v in sparse_architecture_divergence(mask, mask).values()] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [True, False], ids=["dense", "empty"])
def test_masks_that_cannot_differ(value: bool) -> None:
    """N = M: 0, not NaN."""
    mask = torch.full((3, 8), value)
    assert sparse_architecture_divergence(mask, mask)["fraction_of_max"].item() == 0.0


@pytest.mark.parametrize(("pack_before", "pack_after"), [(True, True), (True, False), (False, True)])
def test_packed_masks_give_the_same(pack_before: bool, pack_after: bool) -> None:
    """Either form, also mixed."""
    before, after = exact(2, 4, (3, 12), 0), exact(2, 4, (3, 12), 1)
    packed = sparse_architecture_divergence(
        PackedMask.pack(before) if pack_before else before, PackedMask.pack(after) if pack_after else after
    )
    assert packed == sparse_architecture_divergence(before, after)


def test_layers_by_name_are_reported_one_by_one() -> None:
    """Each layer has the numbers that it has alone."""
    before = {"fc1": exact(2, 4, (3, 8), 0), "fc2": exact(1, 4, (5, 4), 1)}
    after = {"fc2": exact(1, 4, (5, 4), 2), "fc1": exact(2, 4, (3, 8), 3)}
    sad = sparse_architecture_divergence(before, after)
    for name in before:
        alone = sparse_architecture_divergence(before[name], after[name])
        assert {key: sad[f"{name}/{key}"] for key in alone} == alone


def test_layers_together_are_one_long_layer() -> None:
    """Totals are ratios of sums, not means of ratios."""
    before = {"fc1": exact(2, 4, (3, 8), 0), "fc2": exact(1, 4, (5, 4), 1)}
    after = {"fc1": exact(2, 4, (3, 8), 2), "fc2": exact(1, 4, (5, 4), 3)}
    count = sum(hamming_by_hand(before[name], after[name]) for name in before)
    largest = 3 * 8 * 2 * 2 / 4 + 5 * 4 * 2 * 1 / 4
    sad = sparse_architecture_divergence(before, after)
    assert [sad[key].item() for key in ("count", "fraction", "fraction_of_max")] == [count, count / 44, count / largest]


def test_counts_beyond_float32_are_exact() -> None:
    """2^24 + 1 is no float32."""
    before = torch.zeros(2**24 + 1, dtype=torch.bool)
    assert sparse_architecture_divergence(before, ~before)["count"].item() == 2**24 + 1


MASK = torch.ones(2, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (MASK.float(), MASK, r"bool tensor.*torch.float32 of shape \(2, 4\)"),
        (MASK, MASK.int(), r"bool tensor.*torch.int32 of shape \(2, 4\)"),
        (MASK, MASK.T, r"\(2, 4\) and \(4, 2\) cannot be compared"),
        ({"a": MASK}, {"b": MASK}, r"\['a'\] before, \['b'\] after"),
        ({"a": MASK}, {}, r"\['a'\] before, \[\] after"),
        ({"a": MASK}, {"a": MASK, "b": MASK}, r"\['a'\] before, \['a', 'b'\] after"),
        ({}, {}, "no masks"),
    ],
    ids=["float", "int", "shape", "names", "one missing", "one more", "none"],
)
def test_what_cannot_be_compared(before: object, after: object, said: str) -> None:
    """The message says why."""
    with pytest.raises(ValueError, match=said):
        sparse_architecture_divergence(before, after)
