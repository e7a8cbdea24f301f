"""A mask at one bit per weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm.patterns import PackedMask
from tests.oracles import bits_by_hand, hamming_by_hand

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def random_mask(shape: list[int] | tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 999))
def test_unpack_takes_back_what_pack_did(shape: list[int], seed: int) -> None:
    """The round trip is exact."""
    mask = random_mask(shape, seed)
    assert torch.equal(PackedMask.pack(mask).unpack(), mask)


def test_a_bit_per_weight_and_spare_bits_zero() -> None:
    """Nothing in the last byte can be mistaken for a kept entry."""
    mask = torch.ones(3, 7, dtype=torch.bool)
    assert PackedMask.pack(mask).bits.tolist() == bits_by_hand(mask) == [255, 255, 0b11111]


def test_numel_is_that_of_the_weight() -> None:
    """Not the number of bytes."""
    assert PackedMask.pack(random_mask((3, 7))).numel() == 21


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 999))
def test_kept_counts_the_kept(shape: list[int], seed: int) -> None:
    """Against plain Python."""
    mask = random_mask(shape, seed)
    assert PackedMask.pack(mask).kept().item() == sum(mask.flatten().tolist())


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 999))
def test_distance_counts_the_differences(shape: list[int], seed: int) -> None:
    """Against plain Python."""
    first, second = random_mask(shape, seed), random_mask(shape, seed + 1)
    assert PackedMask.pack(first).distance(PackedMask.pack(second)).item() == hamming_by_hand(first, second)


def test_distance_of_different_shapes_is_refused() -> None:
    """The message shows both shapes, also where the bytes are as many."""
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(8, 4\)"):
        PackedMask.pack(random_mask((4, 8))).distance(PackedMask.pack(random_mask((8, 4))))


@pytest.mark.parametrize(
    "bits",
    [
        torch.zeros(2, dtype=torch.uint8),
        torch.zeros(4, dtype=torch.uint8),
        torch.zeros(3, 1, dtype=torch.uint8),
        torch.zeros(3, dtype=torch.int32),
        torch.zeros(3, dtype=torch.bool),
    ],
    ids=["short", "long", "2-D", "int32", "bool"],
)
def test_wrong_bits_are_refused(bits: torch.Tensor) -> None:
    """A truncated checkpoint does not become a mask; the message says what was needed and what came."""
    with pytest.raises(ValueError, match=r"\(3, 7\) takes 3 bytes \(uint8\), got torch"):
        PackedMask(bits, torch.Size((3, 7)))


def test_only_bool_masks_are_packed() -> None:
    """Numbers other than 0 and 1 would spill into their neighbours' bits."""
    with pytest.raises(ValueError):
        PackedMask.pack(torch.tensor([2.0, 0.0, 1.0, 1.0]))


def test_empty_keeps_nothing() -> None:
    """A mask of the weight's shape, to be filled by a split."""
    packed = PackedMask.empty(torch.ones(3, 7))
    assert packed.shape == (3, 7)
    assert not packed.unpack().any()


def test_clone_has_bits_of_its_own() -> None:
    """A split into one leaves the other."""
    packed = PackedMask.pack(torch.ones(8, dtype=torch.bool))
    packed.clone().bits.zero_()
    assert packed.kept() == 8


def test_to_keeps_the_mask() -> None:
    """Moving changes the device only."""
    mask = random_mask((3, 7))
    assert torch.equal(PackedMask.pack(mask).to(torch.device("cpu")).unpack(), mask)
