"""Views: dimensions that are merged and divided."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from lightning_nm.conversion.rearrangement.channels import Ids
from lightning_nm.conversion.rearrangement.trace import SINGLE, Axes, Axis, Trace

_DIVIDED = "divided over several dimensions by a view (heads, groups or a shuffle)"
_MERGED = "merged with other channels by a view"


def reshaped(trace: Trace, axes: Axes, shape: Sequence[int], target: Sequence[int]) -> Axes:
    """What the dimensions hold after a view from ``shape`` to ``target``.

    Where channels are merged with dimensions whose places are fixed (flattening before a Linear), the merged positions
    are parts of the channels; divided again in any order that keeps the parts of a channel together, they are
    channels once more. Channels whose view needs two dimensions to tell them apart are pinned.
    """
    result: list[Axis] = [SINGLE] * len(target)
    if 0 in shape:
        return tuple("an empty dimension" for _ in target)
    for before, after in _blocks(shape, target):
        if len(before) == len(after) == 1:
            result[after[0]] = axes[before[0]]
            continue
        for d, axis in zip(
            after, _block(trace, [axes[d] for d in before], [shape[d] for d in before], [target[d] for d in after])
        ):
            result[d] = axis
    return tuple(result)


def _blocks(shape: Sequence[int], target: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions with equal products, dimensions of size 1 left out."""
    left = [d for d, size in enumerate(shape) if size != 1]
    right = [d for d, size in enumerate(target) if size != 1]
    blocks = []
    while left:
        before, after = [left.pop(0)], [right.pop(0)]
        while (a := prod(shape[d] for d in before)) != (b := prod(target[d] for d in after)):
            if a < b:
                before.append(left.pop(0))
            else:
                after.append(right.pop(0))
        blocks.append((before, after))
    return blocks


def _block(trace: Trace, axes: list[Axis], shape: list[int], target: list[int]) -> list[Axis]:
    moving = []
    for d, axis in enumerate(axes):
        if isinstance(axis, str):
            continue
        if trace.channels.are_constant(axis):
            # alike at every position, it may as well have fixed places
            trace.pin(axis, _MERGED)
        else:
            moving.append(d)
    reasons = [axis for axis in axes if isinstance(axis, str)]
    # of several reasons, what became of channels says more than what a batch is
    fixed = _DIVIDED if _DIVIDED in reasons else reasons[0] if reasons else _MERGED
    if len(moving) != 1:
        for d in moving:
            trace.pin(axes[d], _MERGED)
        return [_MERGED if moving else fixed] * len(target)
    (d,) = moving
    channels = axes[d]
    assert not isinstance(channels, str)

    # of every position of the new view: its channel, and where it was besides
    position = np.arange(prod(shape))
    along = position // prod(shape[d + 1 :]) % shape[d]
    roots, parts = trace.channels.resolve(channels)
    elsewhere = position // prod(shape[d:]) * prod(shape[d + 1 :]) + position % prod(shape[d + 1 :])
    root = roots[along].reshape(target)
    place = (parts[along] * (len(position) // shape[d]) + elsewhere).reshape(target)
    for new in range(len(target)):
        told = _tells(trace, np.moveaxis(root, new, 0), np.moveaxis(place, new, 0))
        if told is not None:
            return [told if other == new else fixed for other in range(len(target))]
    trace.pin(channels, _DIVIDED)
    return [_DIVIDED] * len(target)


def _tells(trace: Trace, root: Ids, place: Ids) -> Ids | None:
    """The channels along the first dimension, if it alone tells them, and all channels have the same places."""
    size = len(root)
    root, place = root.reshape(size, -1), place.reshape(size, -1)
    if (root != root[:, :1]).any():
        return None
    names = root[:, 0]
    order = np.argsort(names, kind="stable")
    counts = np.unique(names, return_counts=True)[1]
    if len(counts) == 1 or (counts != counts[0]).any():
        return None
    per = int(counts[0])
    # [channels, positions of a channel, rest]
    grouped = place[order].reshape(len(counts), per, -1)
    if (grouped != grouped[:1]).any():
        return None
    if per == 1:
        return names
    nth = np.empty(size, np.int64)
    nth[order] = np.tile(np.arange(per), len(counts))
    return trace.channels.parts(names, nth)
