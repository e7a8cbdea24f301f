"""The union-find of channels."""

from __future__ import annotations

import numpy as np

from lightning_nm.conversion.rearrangement.channels import Channels


def test_joined_channels_have_one_representative() -> None:
    """Transitively, and those that were not joined keep their own."""
    channels = Channels()
    a, b, c = (channels.new(3) for _ in range(3))
    channels.join(a, b)
    channels.join(b[[0]], c[[2]])
    assert np.array_equal(channels.find(a), channels.find(b))
    assert channels.find(c)[2] == channels.find(a)[0]
    assert len({*channels.find(a), *channels.find(c)}) == 5


def test_parts_that_meet_join_their_wholes() -> None:
    """At the same place of two channels; what they resolve to tells channel and place."""
    channels = Channels()
    a, b = channels.new(2), channels.new(2)
    channels.join(
        channels.parts(a.repeat(3), np.tile(np.arange(3), 2)), channels.parts(b.repeat(3), np.tile(np.arange(3), 2))
    )
    assert np.array_equal(channels.find(a), channels.find(b))
    roots, places = channels.resolve(channels.parts(b.repeat(3), np.tile(np.arange(3), 2)))
    assert np.array_equal(roots, channels.find(a).repeat(3))
    assert places.tolist() == places.tolist()[:3] * 2
    assert len(set(places.tolist())) == 3


def test_parts_of_parts() -> None:
    """The place in a place: all different, and equal for two channels."""
    channels = Channels()
    a = channels.new(2)
    inner = channels.parts(a.repeat(2), np.tile(np.arange(2), 2))
    roots, places = channels.resolve(channels.parts(inner.repeat(2), np.tile(np.arange(2), 4)))
    assert np.array_equal(roots, a.repeat(4))
    assert len(set(places.tolist())) == 4
    assert places.tolist()[:4] == places.tolist()[4:]


def test_divisions_that_do_not_agree_are_pinned() -> None:
    """A position that is at place 0 of one channel and at place 1 of another, and one that is a part of itself."""
    channels = Channels()
    a, b, c = channels.new(1), channels.new(1), channels.new(1)
    channels.join(channels.parts(a, np.array([0])), channels.parts(b, np.array([1])))
    part = channels.parts(c, np.array([0]))
    channels.join(c, part)
    channels.resolve(c)
    reasons = channels.reasons()
    assert all("do not agree" in reasons[int(i)] for i in [*a, *b])
    assert len(reasons) == 3


def test_the_first_reason_is_kept() -> None:
    """Also when pinned channels are joined, and for the whole of a pinned part."""
    channels = Channels()
    a, b = channels.new(2), channels.new(2)
    channels.pin(a, "first")
    channels.pin(a, "second")
    channels.join(b, a)
    assert set(channels.reasons().values()) == {"first"}
    c = channels.new(1)
    channels.pin(channels.parts(c, np.array([4])), "a part")
    assert channels.reasons()[int(c[0])] == "a part"


def test_constants_are_constant_until_they_are_joined() -> None:
    channels = Channels()
    constant, other = channels.new(2, constant=True), channels.new(2)
    assert channels.are_constant(constant)
    assert not channels.are_constant(other)
    channels.join(constant, other)
    assert not channels.are_constant(constant)
