"""What tensors' dimensions hold: labels, and what becomes of channels that meet."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from lightning_nm.conversion.rearrangement.trace import SINGLE, Axes, Trace


def reasons(trace: Trace, axes: Axes) -> list[set[str]]:
    """Of each dimension, why its positions stay: "" where they may move."""
    found = trace.channels.reasons()
    return [
        {axis} if isinstance(axis, str) else {found.get(int(root), "") for root in trace.channels.resolve(axis)[0]}
        for axis in axes
    ]


def test_a_parameter_has_channels_of_its_own() -> None:
    """A channel for every position of every dimension, none of them in common, all free to move."""
    a, b = torch.randn(3, 4), torch.randn(3)
    trace = Trace({"a": a, "b": b})
    axes = (*trace.axes(a), *trace.axes(b))
    assert [len(axis) for axis in axes] == [3, 4, 3]
    assert len(np.unique(np.concatenate(axes))) == 10
    assert reasons(trace, axes) == [{""}] * 3


def test_a_parameter_keeps_its_channels() -> None:
    """Used a second time, it holds what it held."""
    weight = torch.randn(3, 4)
    trace = Trace({"weight": weight})
    first = trace.axes(weight)
    assert all(again is axis for again, axis in zip(trace.axes(weight), first))


def test_what_was_used_is_held_by_name() -> None:
    """In the order of use, with one label for each dimension; unused parameters are not there."""
    a, b, c = torch.randn(3, 4), torch.randn(2), torch.randn(5)
    trace = Trace({"a": a, "b": b, "c": c})
    axes = {"b": trace.axes(b), "a": trace.axes(a)}
    assert trace.held == axes
    assert [*trace.held] == ["b", "a"]


def test_the_same_parameter_in_another_run() -> None:
    """Another tensor of that name holds the same channels; whether it was used is known of each run."""
    first, second = torch.randn(3), torch.randn(3)
    trace = Trace({"weight": first})
    axes = trace.axes(first)
    trace.hold({"weight": second})
    assert trace.used({"weight": first}) == {"weight"}
    assert trace.used({"weight": second}) == set()
    assert trace.axes(second)[0] is axes[0]
    assert trace.used({"weight": second}) == {"weight"}


def test_single_positions_of_a_parameter() -> None:
    """A dimension of one position has no channel, an empty one neither."""
    weight = torch.randn(3, 1, 0)
    trace = Trace({"weight": weight})
    assert trace.axes(weight)[1:] == (SINGLE, SINGLE)
    assert trace.held["weight"][1:] == (SINGLE, SINGLE)


def test_other_tensors_are_constants() -> None:
    """Also one that looks like a parameter; its dimensions have fixed places and are not held."""
    weight = torch.randn(3, 4)
    trace = Trace({"weight": weight})
    assert trace.axes(weight.clone()) == ("a constant inside the model",) * 2
    assert not trace.held


def test_labels_are_read_back() -> None:
    """The last label counts: an operation in place gives its tensor a new one."""
    trace, x = Trace({}), torch.randn(2, 3)
    trace.label(x, ("batch", trace.channels.new(3)))
    last = trace.channels.new(3)
    trace.label(x, ("batch", last))
    assert trace.axes(x)[0] == "batch"
    assert trace.axes(x)[1] is last


def test_single_positions_have_one_label() -> None:
    """Whatever a rule calls them, so that they broadcast."""
    trace, x = Trace({}), torch.randn(1, 1, 2)
    expected = (SINGLE, SINGLE, "rows")
    assert trace.label(x, (trace.channels.new(1), "batch", "rows")) == expected
    assert trace.axes(x) == expected


def test_a_label_of_another_size_is_refused() -> None:
    """A rule that gives too many channels is a mistake, at once."""
    trace = Trace({})
    with pytest.raises(AssertionError, match="4 channels for a dimension of 3"):
        trace.label(torch.randn(3), (trace.channels.new(4),))


def test_several_positions_are_not_single() -> None:
    """A rule that gives the label of one position to several is a mistake, at once."""
    with pytest.raises(AssertionError, match="a dimension of 3 has no label"):
        Trace({}).label(torch.randn(1, 3), (SINGLE, SINGLE))


def test_labels_keep_no_tensor_alive() -> None:
    """Activations are freed as in a run without a trace."""
    trace, x = Trace({}), torch.randn(2)
    trace.label(x, (trace.channels.new(2),))
    gone = weakref.ref(x)
    del x
    assert gone() is None


def test_every_dimension_that_was_seen_is_a_group() -> None:
    """Of parameters and of what was made, also one channel picked out of others; fixed places are none."""
    weight = torch.randn(2, 3)
    trace = Trace({"weight": weight})
    rows, columns = trace.axes(weight)
    one = columns[[1]]
    trace.label(torch.randn(4, 1), ("batch", one))
    assert {group.tobytes() for group in trace.groups.values()} == {
        rows.tobytes(),
        columns.tobytes(),
        one.tobytes(),
    }


def test_groups_that_nobody_else_keeps() -> None:
    """They are kept, so that nothing else is allocated where one was and taken for it."""
    trace = Trace({})
    axis = trace.channels.new(3)[:2]
    kept = weakref.ref(axis)
    trace.group(axis)
    del axis
    assert kept() is not None


def test_fixed_places_are_no_group() -> None:
    """They have no order to be told apart by."""
    trace = Trace({})
    trace.group("batch")
    assert not trace.groups


def test_fixing_what_has_labels() -> None:
    """All of its channels stay, with the reason; those of others do not."""
    trace, x, y = Trace({}), torch.randn(2, 3), torch.randn(3)
    axes, others = trace.label(x, (trace.channels.new(2), trace.channels.new(3))), trace.channels.new(3)
    trace.label(y, (others,))
    trace.fix(x, "an output")
    assert reasons(trace, axes) == [{"an output"}] * 2
    assert reasons(trace, (others,)) == [{""}]


def test_fixing_a_parameter_that_was_not_used() -> None:
    """It is held from then on, and stays."""
    weight = torch.randn(2, 3)
    trace = Trace({"weight": weight})
    trace.fix(weight, "an output")
    assert reasons(trace, trace.held["weight"]) == [{"an output"}] * 2


def test_fixing_a_new_tensor() -> None:
    """The reason is its label."""
    trace, x = Trace({}), torch.randn(2, 3)
    trace.fix(x, "an input")
    assert trace.axes(x) == ("an input", "an input")


def test_fixing_several() -> None:
    """Each of them, known or new."""
    weight, x = torch.randn(2), torch.randn(3)
    trace = Trace({"weight": weight})
    trace.fix_all([weight, x], "an input")
    assert reasons(trace, (*trace.axes(weight), *trace.axes(x))) == [{"an input"}] * 2


def test_pinning_fixed_places() -> None:
    """They are where they stay: no channel is pinned for them."""
    trace = Trace({})
    trace.channels.new(2)
    trace.pin("batch", "an output")
    assert not trace.channels.reasons()


def test_joined_channels_move_together() -> None:
    """One to one, in their order."""
    trace = Trace({})
    a, b = trace.channels.new(3), trace.channels.new(3)
    joined = trace.join(a, b)
    assert np.array_equal(trace.channels.find(a), trace.channels.find(b))
    assert len(np.unique(trace.channels.find(a))) == 3
    assert np.array_equal(trace.channels.find(joined), trace.channels.find(a))
    assert not trace.channels.reasons()


@pytest.mark.parametrize("channels_first", [True, False])
def test_channels_that_meet_one_position(channels_first: bool) -> None:
    """Broadcasting: they remain what they are, free to move."""
    trace = Trace({})
    channels = trace.channels.new(3)
    assert (trace.join(channels, SINGLE) if channels_first else trace.join(SINGLE, channels)) is channels
    assert reasons(trace, (channels,)) == [{""}]


@pytest.mark.parametrize("channels_first", [True, False])
def test_channels_that_meet_fixed_places(channels_first: bool) -> None:
    """They stay for the reason for which the places are fixed, and the result has fixed places too."""
    trace = Trace({})
    channels = trace.channels.new(3)
    assert (trace.join(channels, "batch") if channels_first else trace.join("batch", channels)) == "batch"
    assert reasons(trace, (channels,)) == [{"batch"}]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("rows", "batch", "rows"),
        ("rows", SINGLE, "rows"),
        (SINGLE, "rows", "rows"),
        (SINGLE, SINGLE, SINGLE),
    ],
)
def test_fixed_places_that_meet(a: str, b: str, expected: str) -> None:
    """The first reason, unless it is no more than that there is one position."""
    assert Trace({}).join(a, b) == expected


def test_dimensions_of_different_size_that_meet() -> None:
    """Neither can be followed, so both stay, and so does the result."""
    trace = Trace({})
    a, b = trace.channels.new(2), trace.channels.new(3)
    joined = trace.join(a, b)
    assert isinstance(joined, str)
    assert "another size" in joined
    assert reasons(trace, (a, b)) == [{joined}] * 2


def test_operands_meet_at_their_last_dimensions() -> None:
    """``[2, 3] + [3] + [1, 3] + []`` is ``[2, 3]``: the threes move together, the two alone."""
    trace = Trace({})
    two, a, b, c = (trace.channels.new(size) for size in (2, 3, 3, 3))
    joined = trace.broadcast([(a,), (two, b), (SINGLE, c), ()])
    assert len(joined) == 2
    assert joined[0] is two
    assert len(np.unique(trace.channels.find(np.concatenate([a, b, c, joined[1]])))) == 3


def test_no_operands() -> None:
    """A number has no dimension."""
    assert Trace({}).broadcast([]) == ()
