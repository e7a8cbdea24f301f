"""Packed masks: bit e % 8 of byte e // 8 is entry e, spare bits are zero."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm.kernels.bits import byte_count, pack_bits, popcount, unpack_bits
from tests.oracles import bits_by_hand

shapes = st.lists(st.integers(0, 9), min_size=1, max_size=4).map(torch.Size)


def random_mask(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5


@pytest.mark.parametrize(("numel", "count"), [(0, 0), (1, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_byte_count_rounds_up(numel: int, count: int) -> None:
    """The last byte may be partly filled."""
    assert byte_count(numel) == count


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 999))
def test_pack_puts_each_entry_in_its_place(shape: torch.Size, seed: int) -> None:
    """The layout is the documented one, and spare bits are zero."""
    mask = random_mask(shape, seed)
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8
    assert bits.tolist() == bits_by_hand(mask)


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 999))
def test_unpack_takes_back_what_pack_did(shape: torch.Size, seed: int) -> None:
    """A mask survives the round trip."""
    mask = random_mask(shape, seed)
    unpacked = unpack_bits(pack_bits(mask), shape)
    assert unpacked.dtype == torch.bool
    assert torch.equal(unpacked, mask)


def test_pack_does_not_see_the_memory_format() -> None:
    """Masks of one shape can be compared byte by byte, channels_last or not."""
    mask = random_mask((3, 4, 5, 2))
    assert torch.equal(pack_bits(mask.to(memory_format=torch.channels_last)), pack_bits(mask))


def test_pack_leaves_the_mask_alone() -> None:
    """Packing is a pure function."""
    mask = random_mask((5, 5))
    before = mask.clone()
    pack_bits(mask)
    assert torch.equal(mask, before)


def test_popcount_of_every_byte() -> None:
    """The bit trick is right for all there is."""
    counts = [popcount(torch.tensor([byte], dtype=torch.uint8)).item() for byte in range(256)]
    assert counts == [byte.bit_count() for byte in range(256)]


def test_popcount_is_an_int64_scalar_that_does_not_wrap() -> None:
    """The sum outgrows a byte."""
    count = popcount(torch.full((1000,), 255, dtype=torch.uint8))
    assert count.dtype == torch.int64
    assert count.shape == ()
    assert count.item() == 8000
