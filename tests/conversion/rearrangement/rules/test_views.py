"""Views: which dimension tells channels apart afterwards, where one does."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.channels import Ids
from lightning_nm.conversion.rearrangement.rules.views import reshaped
from lightning_nm.conversion.rearrangement.trace import SINGLE, Axes, Trace

Shape = tuple[int, ...]


def factorizations(number: int) -> list[Shape]:
    """Every shape of so many positions, without dimensions of one."""
    heads = [size for size in range(2, number) if number % size == 0]
    return [(number,), *((size, *rest) for size in heads for rest in factorizations(number // size))]


def start(shape: Shape, dim: int) -> tuple[Trace, Ids, Axes]:
    """Channels in one dimension, fixed places in the others."""
    trace = Trace({})
    channels = trace.channels.new(shape[dim])
    return trace, channels, tuple(channels if d == dim else "batch" for d in range(len(shape)))


def told_by(x: Tensor, dim: int, target: Shape) -> int | None:
    """The dimension of the view along which every permutation of the channels is one, found by trying.

    Swapping two and moving all on by one make every permutation.
    """
    size = x.shape[dim]
    orders = [[1, 0, *range(2, size)], [*range(1, size), 0]]
    after = [x.index_select(dim, torch.tensor(order)).view(target) for order in orders]
    for d in range(len(target)):
        rows = {tuple(row.flatten().tolist()) for row in x.view(target).unbind(d)}
        if all(tuple(row.flatten().tolist()) in rows for view in after for row in view.unbind(d)):
            return d
    return None


def followed(trace: Trace, axes: Axes, order: Tensor, channels: Ids, view: Tensor) -> Tensor:
    """``view`` permuted as its labels say when ``channels`` are in a new order."""
    becomes = dict(zip(trace.channels.find(channels).tolist(), trace.channels.find(channels)[order].tolist()))
    for d, axis in enumerate(axes):
        if isinstance(axis, str):
            continue
        roots, places = trace.channels.resolve(axis)
        at = {key: i for i, key in enumerate(zip(roots.tolist(), places.tolist()))}
        view = view.index_select(d, torch.tensor([at[becomes[root], place] for root, place in at]))
    return view


@pytest.mark.parametrize("shape", factorizations(24), ids=str)
def test_what_is_told_moves_as_its_labels_say(shape: Shape) -> None:
    """The view of permuted channels is the permuted view: any view of 24 positions, any dimension of channels."""
    x = torch.arange(24).view(shape)
    for target, dim in product(factorizations(24), range(len(shape))):
        trace, channels, axes = start(shape, dim)
        new = reshaped(trace, axes, shape, target)
        if trace.channels.reasons():
            continue
        for order in (torch.arange(len(channels)).roll(1), torch.arange(len(channels)).flip(0)):
            moved = x.index_select(dim, order).view(target)
            assert torch.equal(followed(trace, new, order, channels, x.view(target)), moved), (target, dim)


@pytest.mark.parametrize("shape", factorizations(24), ids=str)
def test_channels_are_followed_wherever_one_dimension_tells_them(shape: Shape) -> None:
    """And pinned, all of them, where none does."""
    x = torch.arange(24).view(shape)
    for target, dim in product(factorizations(24), range(len(shape))):
        trace, channels, axes = start(shape, dim)
        new = reshaped(trace, axes, shape, target)
        told = told_by(x, dim, target)
        assert [d for d, axis in enumerate(new) if not isinstance(axis, str)] == ([] if told is None else [told])
        assert set(trace.channels.reasons()) == (set() if told is not None else set(channels.tolist())), (target, dim)


@pytest.mark.parametrize("shape", factorizations(12), ids=str)
def test_views_of_views(shape: Shape) -> None:
    """Channels that one dimension tells after each are followed through both, and move as their labels say."""
    x, shapes = torch.arange(12).view(shape), factorizations(12)
    for between, target, dim in product(shapes, shapes, range(len(shape))):
        trace, channels, axes = start(shape, dim)
        new = reshaped(trace, reshaped(trace, axes, shape, between), between, target)
        if None in (told_by(x, dim, between), told_by(x, dim, target)):
            continue
        assert not trace.channels.reasons(), (between, target, dim)
        order = torch.arange(len(channels)).roll(1)
        moved = x.index_select(dim, order).view(target)
        assert torch.equal(followed(trace, new, order, channels, x.view(target)), moved), (between, target, dim)


def test_dimensions_that_remain_keep_their_labels() -> None:
    """Beside others that are merged: the very same channels, or reasons."""
    trace = Trace({})
    channels, others = trace.channels.new(3), trace.channels.new(5)
    axes = reshaped(trace, ("batch", channels, "rows", "columns", others), (2, 3, 4, 4, 5), (2, 3, 16, 5))
    assert axes[0] == "batch"
    assert axes[1] is channels
    assert axes[3] is others


def test_dimensions_of_one_come_and_go() -> None:
    """Whatever stands beside them: what they hold is one position."""
    trace, channels, _ = start((3,), 0)
    axes = reshaped(trace, (SINGLE, "batch", SINGLE, channels), (1, 2, 1, 3), (2, 1, 1, 3, 1))
    assert axes[:3] == ("batch", SINGLE, SINGLE)
    assert axes[3] is channels
    assert axes[4] == SINGLE
    assert reshaped(trace, (SINGLE, SINGLE), (1, 1), ()) == ()


def test_merged_positions_are_parts_of_channels() -> None:
    """Flattened before a Linear: of each channel one part at every place, the same places for all."""
    trace, channels, axes = start((2, 3, 2, 2), 1)
    batch, flat = reshaped(trace, axes, (2, 3, 2, 2), (2, 12))
    assert batch == "batch"
    assert not isinstance(flat, str)
    roots, places = trace.channels.resolve(flat)
    assert np.array_equal(roots, channels.repeat(4))
    assert places.tolist() == places[:4].tolist() * 3
    assert len(set(places.tolist())) == 4


def test_divided_again_they_are_channels_once_more() -> None:
    """The same as before they were merged, not parts of them."""
    trace, channels, axes = start((2, 3, 4), 1)
    merged = reshaped(trace, axes, (2, 3, 4), (2, 12))
    again = reshaped(trace, merged, (2, 12), (2, 3, 2, 2))[1]
    assert not isinstance(again, str)
    assert np.array_equal(trace.channels.find(again), channels)


def test_a_linear_after_two_ways_to_flatten() -> None:
    """In one step or in two, parts at the same place are the same: nothing is at odds when they meet."""
    trace, channels, axes = start((2, 3, 2, 2), 1)
    once = reshaped(trace, axes, (2, 3, 2, 2), (2, 12))
    halves = reshaped(trace, axes, (2, 3, 2, 2), (2, 6, 2))
    twice = reshaped(trace, halves, (2, 6, 2), (2, 12))
    trace.join(once[1], twice[1])
    trace.channels.resolve(channels)
    assert not trace.channels.reasons()


def test_places_beside_channels_keep_their_reason() -> None:
    """What is divided among channels and fixed places is fixed for the reason it was."""
    trace, channels, _ = start((3,), 0)
    told, rest = reshaped(trace, (channels, "slid over by a convolution"), (3, 4), (6, 2))
    assert not isinstance(told, str)
    assert rest == "slid over by a convolution"


def test_fixed_places_keep_their_reason() -> None:
    """Merged or divided; of several reasons the first."""
    assert reshaped(Trace({}), ("rows", "columns", "batch"), (2, 3, 4), (6, 2, 2)) == ("rows", "batch", "batch")


def test_divided_channels_stay() -> None:
    """Heads: all of them, and the reason names what did it."""
    trace, channels, axes = start((2, 6), 1)
    new = reshaped(trace, axes, (2, 6), (2, 2, 3))
    reason = "divided over several dimensions by a view (heads, groups or a shuffle)"
    assert new == ("batch", reason, reason)
    assert trace.channels.reasons() == dict.fromkeys(channels.tolist(), reason)


def test_merged_channels_stay() -> None:
    """Both that moved, and the reason names what did it."""
    trace = Trace({})
    a, b = trace.channels.new(2), trace.channels.new(3)
    reason = "merged with other channels by a view"
    assert reshaped(trace, (a, b), (2, 3), (6,)) == (reason,)
    assert trace.channels.reasons() == dict.fromkeys([*a.tolist(), *b.tolist()], reason)


def test_what_became_of_channels_is_said_first() -> None:
    """Heads that are merged again with the batch do not move because they were divided, not because of the batch."""
    trace, _, axes = start((2, 6), 1)
    heads = reshaped(trace, axes, (2, 6), (2, 2, 3))
    assert "divided over" in str(reshaped(trace, heads, (2, 2, 3), (12,))[0])


def test_channels_merged_with_a_constant() -> None:
    """What is alike at every position has no order to keep: the others are followed, the constant stays."""
    trace, channels, _ = start((3,), 0)
    constant = trace.channels.new(4, constant=True)
    (flat,) = reshaped(trace, (channels, constant), (3, 4), (12,))
    assert not isinstance(flat, str)
    assert np.array_equal(trace.channels.resolve(flat)[0], channels.repeat(4))
    assert set(trace.channels.reasons()) == set(constant.tolist())


def test_positions_that_are_all_of_one_channel() -> None:
    """No dimension can tell it from others, so it stays."""
    trace = Trace({})
    repeated = trace.channels.new(1).repeat(4)
    assert "divided over" in str(reshaped(trace, (repeated,), (4,), (2, 2))[0])
    assert trace.channels.reasons()


def test_channels_of_unequal_parts() -> None:
    """One that is there more often than another cannot change places with it, so neither is followed."""
    trace, channels, _ = start((2,), 0)
    flat = reshaped(trace, (channels[[0, 0, 0, 1]], "rows"), (4, 2), (8,))
    assert isinstance(flat[0], str)
    assert set(trace.channels.reasons()) == set(channels.tolist())


def test_channels_of_other_parts() -> None:
    """As many of each but not the same ones: they cannot change places, so neither is followed."""
    trace, channels, _ = start((2,), 0)
    parts = trace.channels.parts(channels.repeat(2), np.array([0, 1, 0, 2]))
    assert isinstance(reshaped(trace, (parts, "rows"), (4, 2), (8,))[0], str)
    assert set(trace.channels.reasons()) == set(channels.tolist())


def test_views_of_nothing() -> None:
    """A tensor without elements says nothing of its channels."""
    trace, channels, _ = start((3,), 0)
    assert reshaped(trace, (SINGLE, channels), (0, 3), (3, 0, 5)) == ("an empty dimension",) * 3
    assert not trace.channels.reasons()
