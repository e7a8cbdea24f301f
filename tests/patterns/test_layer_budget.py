"""Budgets of whole layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nm.patterns import Block1xN, Filter, PackedMask, Pattern, Unstructured
from tests.oracles import raw, split_by_hand

KINDS = [Block1xN(2, 0.5), Block1xN(4, 0.3), Unstructured(0.7), Filter(0.4)]


def mask_by_hand(pattern: Pattern, weight: Tensor, dim: int) -> Tensor:
    """Units sorted by their norms, one entry after the other."""
    rows = weight.movedim((1 - dim, dim), (0, 1)).reshape(weight.shape[1 - dim], weight.shape[dim], -1)  # [O, I, T]
    outputs, inputs, taps = rows.shape
    unit = {
        Block1xN: lambda o, i, t: (o // getattr(pattern, "n", 1), i),
        Unstructured: lambda o, i, t: (o, i, t),
        Filter: lambda o, i, t: (o,),
    }[type(pattern)]
    norms: dict[tuple[int, ...], float] = {}
    for o in range(outputs):
        for i in range(inputs):
            for t in range(taps):
                norms[unit(o, i, t)] = norms.get(unit(o, i, t), 0.0) + abs(float(rows[o, i, t]))
    going = math.floor(round(pattern.sparsity * len(norms), 9))  # type: ignore[attr-defined]
    kept = set(sorted(norms, key=lambda u: (-norms[u], u))[: len(norms) - going])
    mask = torch.zeros_like(rows, dtype=torch.bool)
    for o in range(outputs):
        for i in range(inputs):
            for t in range(taps):
                mask[o, i, t] = unit(o, i, t) in kept
    shape = [weight.shape[1 - dim], weight.shape[dim], *weight.shape[2:]]
    return mask.reshape(shape).movedim((0, 1), (1 - dim, dim))


@pytest.mark.parametrize("pattern", KINDS, ids=str)
@pytest.mark.parametrize("taps", [(), (3,), (2, 2)])
@pytest.mark.parametrize("dim", [0, 1])
def test_mask_is_the_sorted_one(dim: int, taps: tuple[int, ...], pattern: Pattern) -> None:
    """Unit by unit, for both orders of dimensions."""
    torch.manual_seed(0)
    weight = torch.randn(4, 8, *taps)
    assert torch.equal(pattern.mask(weight, dim=dim), mask_by_hand(pattern, weight, dim))
    assert torch.equal(pattern.mask(weight, dim=dim - weight.dim()), pattern.mask(weight, dim=dim))


@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_ties_go_to_the_lowest_index(pattern: Pattern) -> None:
    """Equal weights: the first units stay."""
    weight = torch.ones(8, 4, 2)
    mask = pattern.mask(weight)
    assert torch.equal(mask, mask_by_hand(pattern, weight, 1))


@pytest.mark.parametrize(("sparsity", "kept"), [(0.7, 3), (0.29, 8), (0.0, 10), (0.99, 1), (1 / 3, 7)])
def test_the_budget_is_exact(sparsity: float, kept: int) -> None:
    """.7 of 10 are 7, whatever .7 is in binary; what is left over stays."""
    assert int(Unstructured(sparsity).mask(torch.randn(2, 5)).sum()) == kept


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 2, float("nan"), "half", None, True])
def test_sparsities_that_are_none(sparsity: Any) -> None:
    """The message shows the rule."""
    with pytest.raises(ValueError, match=r"at least 0 and less than 1; got"):
        Unstructured(sparsity)


@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_violations_are_units_too_many(pattern: Pattern) -> None:
    """None after masking; as many as went, where all are there."""
    weight = torch.randn(8, 4, 3)
    mask = pattern.mask(weight)
    assert pattern.violations(torch.where(mask, weight, 0.0)) == 0
    unit = {Unstructured: 1, Filter: 12}.get(type(pattern), 3 * getattr(pattern, "n", 1))
    assert pattern.violations(torch.ones(8, 4, 3)) == int((~mask).sum()) // unit


@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_split_splits_by_the_mask(pattern: Pattern) -> None:
    """Weight, hidden part and bits."""
    weight = torch.randn(8, 4, 3)
    packed, hidden = PackedMask.empty(weight), torch.empty_like(weight)
    mask = pattern.mask(weight)
    sparse, removed = split_by_hand(weight, mask)
    pattern.split_(weight, hidden, packed.bits)
    assert torch.equal(raw(weight), raw(sparse))
    assert torch.equal(raw(hidden), raw(removed))
    assert torch.equal(packed.unpack(), mask)


@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_no_piece_can_be_masked_alone(pattern: Pattern) -> None:
    """Whoever shards weights asks."""
    assert pattern.layerwise


@pytest.mark.parametrize(
    ("pattern", "units", "kept"), [(Unstructured(0.5), 96, 48), (Block1xN(2, 0.25), 16, 12), (Filter(0.5), 8, 4)]
)
def test_diversity_is_a_binomial(pattern: Pattern, units: int, kept: int) -> None:
    """Any units may stay."""
    assert pattern.log_diversity((8, 4, 3)) == pytest.approx(math.log(math.comb(units, kept)))


@pytest.mark.parametrize("pattern", KINDS, ids=str)
def test_norms_of_halves_do_not_overflow(pattern: Pattern) -> None:
    """fp16 weights are added in float64."""
    assert torch.equal(pattern.mask(torch.full((8, 4), 6e4).half()), pattern.mask(torch.ones(8, 4)))
