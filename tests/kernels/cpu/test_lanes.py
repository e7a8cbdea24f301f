"""One vector step: sixteen entries, sixteen lanes, two bytes of mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from lightning_nm.kernels import pack_bits
from tests.kernels.cases import weight_of
from tests.oracles import bits_by_hand, hamming_by_hand, nm_mask_by_hand, raw, split_by_hand

pytest.importorskip("numba")

from numba import njit

from lightning_nm.kernels.cpu.lanes import LANES, split_step

INFINITY = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
VARIANTS = [
    (torch.float32, (2, 4)),
    (torch.bfloat16, (4, 8)),
    (torch.float16, (1, 16)),
    (torch.float32, (1, 1)),
    (torch.float32, (1, 2)),
    (torch.bfloat16, None),
    (torch.float32, None),
]


@cache
def step_of(dtype: torch.dtype, nm: tuple[int, int] | None, with_hidden: bool) -> Callable[..., int]:
    """The intrinsic, made callable from Python."""
    step = split_step(dtype.itemsize * 8, INFINITY[dtype], nm, with_hidden)
    return njit(lambda weight, hidden, bits, start: step(weight, hidden, bits, start))


def run(
    weight: Tensor, hidden: Tensor, bits: Tensor, start: int, nm: tuple[int, int] | None, *, with_hidden: bool = True
) -> tuple[int, int]:
    """Step over ``weight[start : start + 16]`` in place; returns (flips, nonfinite)."""
    arrays = [raw(t).numpy() for t in (weight, hidden)]
    counts = step_of(weight.dtype, nm, with_hidden)(*arrays, bits.numpy(), start)
    return counts & 0xFFFF, counts >> 16


@pytest.mark.parametrize(("dtype", "nm"), VARIANTS, ids=str)
def test_a_step_takes_its_sixteen_entries_apart(dtype: torch.dtype, nm: tuple[int, int] | None) -> None:
    """And leaves the sixteen before and after alone."""
    weight, before = weight_of("ties", (3 * LANES,), dtype), weight_of("normal", (3 * LANES,), dtype) > 0
    here = slice(LANES, 2 * LANES)
    mask = before[here] if nm is None else nm_mask_by_hand(weight[here], *nm, dim=0)
    expected, expected_hidden, expected_mask = weight.clone(), torch.full_like(weight, 7.0), before.clone()
    expected[here], expected_hidden[here] = split_by_hand(weight[here], mask)
    expected_mask[here] = mask
    hidden, bits = torch.full_like(weight, 7.0), pack_bits(before)
    counts = run(weight, hidden, bits, LANES, nm)
    assert torch.equal(raw(weight), raw(expected))
    assert torch.equal(raw(hidden), raw(expected_hidden))
    assert bits.tolist() == bits_by_hand(expected_mask)
    assert counts == (hamming_by_hand(before[here], mask), 0)


def test_a_step_without_hidden_writes_none() -> None:
    """The second array may then be any."""
    weight = weight_of("normal", (LANES,), torch.float32)
    hidden, bits = torch.full_like(weight, 7.0), torch.zeros(2, dtype=torch.uint8)
    run(weight, hidden, bits, 0, (2, 4), with_hidden=False)
    assert (hidden == 7.0).all()


@pytest.mark.parametrize("kept", [True, False])
def test_sixteen_flips_and_sixteen_nonfinite_entries_fit_the_counts(kept: bool) -> None:
    """The two counts do not run into each other at their largest."""
    weight = torch.full((LANES,), torch.nan)
    bits = torch.full((2,), 0 if kept else 255, dtype=torch.uint8)
    nm = (1, 1) if kept else (1, 16)
    flips, nonfinite = run(weight, torch.empty_like(weight), bits, 0, nm)
    assert (flips, nonfinite) == (16 if kept else 15, 16)


@pytest.mark.parametrize("bits", [0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF])
@pytest.mark.parametrize("sign", [0, -(2**31)])
def test_every_kind_of_nonfinite_is_seen(sign: int, bits: int) -> None:
    """Infinity, signalling and quiet NaN, of both signs."""
    weight = torch.zeros(LANES, dtype=torch.int32)
    weight[3] = sign + bits
    floats = weight.view(torch.float32)
    assert run(floats, torch.empty_like(floats), torch.zeros(2, dtype=torch.uint8), 0, (2, 4))[1] == 1
