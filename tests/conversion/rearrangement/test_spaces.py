"""Spaces: which channels can change places, where they sit, and what a new order does to the tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.channels import Ids
from lightning_nm.conversion.rearrangement.spaces import Moves, Site, Space, find_spaces
from lightning_nm.conversion.rearrangement.trace import TAPS, Trace


def site(name: str, dim: int, positions: list[list[int]], size: int, dims: int = 2) -> Site:
    return Site(name, dim, torch.tensor(positions), size, dims)


def traced(**tensors: Tensor) -> tuple[Trace, list[Ids]]:
    """A trace of parameters that were all used, and the channels of their dimensions."""
    trace = Trace(tensors)
    axes = [axis for tensor in tensors.values() for axis in trace.axes(tensor)]
    return trace, [axis for axis in axes if not isinstance(axis, str)]


def layout(space: Space) -> dict[str, list[list[int]]]:
    """The positions of each channel, by weight and dimension."""
    return {f"{s.name}[{s.dim}]": s.positions.tolist() for s in space.sites}


def test_slots_get_the_channels_of_the_order() -> None:
    """Slot i the channel order[i], not the other way round; other positions keep their values."""
    index = site("w", 1, [[1], [2], [4]], 6).index(torch.tensor([1, 2, 0]))
    assert index.tolist() == [0, 2, 4, 3, 1, 5]


def test_parts_move_with_their_channel() -> None:
    """Each to the same part of the slot, wherever the parts are."""
    index = site("w", 1, [[0, 3], [1, 4], [2, 5]], 6).index(torch.tensor([1, 2, 0]))
    assert index.tolist() == [1, 2, 0, 4, 5, 3]


def test_weights_are_named_with_their_dimension() -> None:
    """Without vectors, and as they were called before torch.compile."""
    sites = (site("a._orig_mod.weight", 0, [[0]], 1), site("a.bias", 0, [[0]], 1, 1), site("b.kernel", 1, [[0]], 1, 4))
    assert Space(sites, 1).weights() == ("a.weight[0]", "b.kernel[1]")
    assert Space(sites, 1).where() == "a.weight[0], b.kernel[1]"


def test_a_space_of_vectors_is_told_by_their_names() -> None:
    """Where no weight holds its channels, there is something to call it by all the same."""
    assert Space((site("scale", 0, [[0]], 1, 1), site("shift", 0, [[0]], 1, 1)), 1).where() == "scale, shift"


def test_moves_permute_copies() -> None:
    """A tensor along all of its dimensions that move; what was given is left as it was."""
    a = Space((site("w", 0, [[0], [1], [2]], 3), site("v", 0, [[0], [1], [2]], 3, 1)), 3)
    b = Space((site("w", 1, [[0], [1]], 2),), 2)
    moves = Moves([(a, torch.tensor([1, 2, 0])), (b, torch.tensor([1, 0]))])
    w, v = torch.arange(6).view(3, 2), torch.arange(3)
    assert moves.apply("w", w).tolist() == [[3, 2], [5, 4], [1, 0]]
    assert moves.apply("v", v).tolist() == [1, 2, 0]
    assert w.flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_spaces_that_share_a_dimension() -> None:
    """Each moves its own positions."""
    spaces = [Space((site("w", 0, positions, 4, 1),), 2) for positions in ([[0], [2]], [[1], [3]])]
    moves = Moves((space, torch.tensor([1, 0])) for space in spaces)
    assert moves.apply("w", torch.arange(4)).tolist() == [2, 3, 0, 1]


def test_moves_know_which_tensors_they_touch() -> None:
    """Each name once; any other tensor comes back as it is."""
    space = Space((site("w", 0, [[0], [1]], 2), site("w", 1, [[0], [1]], 2)), 2)
    moves = Moves([(space, torch.tensor([1, 0]))])
    assert moves.names == ["w"]
    assert moves.apply("other", torch.arange(2)).tolist() == [0, 1]
    assert moves.names == ["w"]
    assert Moves().names == []


def test_channels_that_were_not_joined() -> None:
    """A space for each dimension, in the order of the parameters; dimensions of one position have none."""
    trace, _ = traced(a=torch.randn(3, 1, 2), b=torch.randn(4))
    spaces = find_spaces(trace)
    assert [layout(space) for space in spaces] == [
        {"a[0]": [[0], [1], [2]]},
        {"a[2]": [[0], [1]]},
        {"b[0]": [[0], [1], [2], [3]]},
    ]
    assert [(space.size, space.stays) for space in spaces] == [(3, ""), (2, ""), (4, "")]


def test_sites_know_their_tensor() -> None:
    """The size of the dimension, also where the space holds a part of it, and how many dimensions there are."""
    trace, (rows, _) = traced(w=torch.randn(5, 2, 1))
    trace.group(rows[:2])
    assert [(s.name, s.dim, s.size, s.dims) for space in find_spaces(trace) for s in space.sites] == [
        ("w", 0, 5, 3),
        ("w", 0, 5, 3),
        ("w", 1, 2, 3),
    ]


def test_joined_channels_are_one_space() -> None:
    """The i-th row of every site is the same channel, in whatever order the dimensions were joined."""
    trace, (a, b) = traced(a=torch.randn(4), b=torch.randn(4))
    trace.join(a, b[[2, 0, 3, 1]])
    (space,) = find_spaces(trace)
    assert layout(space) == {"a[0]": [[0], [1], [2], [3]], "b[0]": [[2], [0], [3], [1]]}
    assert space.size == 4


def test_a_product_stays_the_same() -> None:
    """The order that a space gives to one factor undoes what it gives to the other."""
    a, b = torch.randn(5, 6), torch.randn(6, 3)
    trace, (_, columns, rows, _) = traced(a=a, b=b)
    trace.join(columns, rows)
    (space,) = [space for space in find_spaces(trace) if len(space.sites) == 2]
    moves = Moves([(space, torch.tensor([3, 0, 4, 1, 5, 2]))])
    assert not torch.equal(moves.apply("a", a), a)
    assert torch.allclose(moves.apply("a", a) @ moves.apply("b", b), a @ b, atol=1e-5)


def test_channels_that_stay_come_last() -> None:
    """With their reason; the others keep their order."""
    trace, (a, *_) = traced(a=torch.randn(2), b=torch.randn(2), c=torch.randn(2))
    trace.pin(a, "an output")
    assert [(space.where(), space.stays) for space in find_spaces(trace)] == [("b", ""), ("c", ""), ("a", "an output")]


def test_some_channels_of_a_dimension_stay() -> None:
    """The others may move; different reasons are told apart."""
    trace, (a,) = traced(a=torch.randn(6))
    trace.pin(a[[0, 2]], "an output")
    trace.pin(a[[3]], "an input")
    assert [(layout(space), space.size, space.stays) for space in find_spaces(trace)] == [
        ({"a[0]": [[1], [4], [5]]}, 3, ""),
        ({"a[0]": [[0], [2]]}, 2, "an output"),
        ({"a[0]": [[3]]}, 1, "an input"),
    ]


def test_a_pinned_part_holds_its_channel() -> None:
    """And only that one."""
    trace, (a, b) = traced(a=torch.randn(3), b=torch.randn(6))
    trace.join(b, trace.channels.parts(a.repeat(2), np.tile(np.arange(2), 3)))
    trace.pin(b[[3]], "an output")
    assert [(layout(space), space.stays) for space in find_spaces(trace)] == [
        ({"a[0]": [[0], [2]], "b[0]": [[0, 1], [4, 5]]}, ""),
        ({"a[0]": [[1]], "b[0]": [[2, 3]]}, "an output"),
    ]


def test_taps_are_no_channels() -> None:
    """Kernels never move along their taps; nobody asked, so nothing is said of them."""
    trace, (_, taps) = traced(kernel=torch.randn(2, 3))
    trace.pin(taps, TAPS)
    assert [space.where() for space in find_spaces(trace)] == ["kernel[0]"]


def test_groups_are_spaces_of_their_own() -> None:
    """Channels change places within what was seen together, not across."""
    trace, (a,) = traced(a=torch.randn(4))
    trace.group(a[[0, 3]])
    assert [layout(space) for space in find_spaces(trace)] == [{"a[0]": [[0], [3]]}, {"a[0]": [[1], [2]]}]


def test_groups_that_overlap() -> None:
    """Only what every group holds together changes places; what has no like stays, and that is the reason."""
    trace, (a,) = traced(a=torch.randn(4))
    trace.group(a[:3])
    trace.group(a[1:])
    assert [(layout(space), space.stays) for space in find_spaces(trace)] == [
        ({"a[0]": [[1], [2]]}, ""),
        ({"a[0]": [[0]]}, "there is none like it"),
        ({"a[0]": [[3]]}, "there is none like it"),
    ]


def test_a_dimension_that_holds_some_of_the_channels() -> None:
    """They are not exchanged with those that it does not hold."""
    trace, (a, b) = traced(a=torch.randn(5), b=torch.randn(2))
    trace.join(a[3:], b)
    assert [layout(space) for space in find_spaces(trace)] == [
        {"a[0]": [[0], [1], [2]]},
        {"a[0]": [[3], [4]], "b[0]": [[0], [1]]},
    ]


def test_parts_are_matched_by_their_place() -> None:
    """A flattened dimension: of each channel the parts in the same order, wherever they are."""
    trace, (a, b) = traced(a=torch.randn(3), b=torch.randn(6))
    # of channel 2 the part at place 1 comes first
    trace.join(b, trace.channels.parts(a[[0, 1, 0, 1, 2, 2]], np.array([0, 0, 1, 1, 1, 0])))
    (space,) = find_spaces(trace)
    assert layout(space) == {"a[0]": [[0], [1], [2]], "b[0]": [[0, 2], [1, 3], [5, 4]]}


def test_channels_with_parts_at_other_places() -> None:
    """They are unlike: where one has a part the other has none."""
    trace, (a, b) = traced(a=torch.randn(3), b=torch.randn(6))
    trace.join(b, trace.channels.parts(a.repeat(2), np.array([0, 1, 0, 1, 0, 2])))
    assert [(layout(space)["a[0]"], space.stays) for space in find_spaces(trace)] == [
        ([[0], [1]], ""),
        ([[2]], "there is none like it"),
    ]


def test_a_channel_in_several_positions() -> None:
    """Where a network reads the same channel twice, both positions move."""
    trace, (a, b) = traced(a=torch.randn(3), b=torch.randn(6))
    trace.join(b, np.tile(a, 2))
    (space,) = find_spaces(trace)
    assert layout(space)["b[0]"] == [[0, 3], [1, 4], [2, 5]]


def test_a_channel_that_is_there_more_often() -> None:
    """It is unlike the others."""
    trace, (a, b) = traced(a=torch.randn(3), b=torch.randn(4))
    trace.join(b, a[[0, 1, 2, 2]])
    assert [(layout(space)["b[0]"], space.stays) for space in find_spaces(trace)] == [
        ([[0], [1]], ""),
        ([[2, 3]], "there is none like it"),
    ]


def test_divisions_that_do_not_agree_stay() -> None:
    """Also where that is found no sooner than the parts are resolved: a channel that is a part of itself."""
    trace, (a,) = traced(a=torch.randn(2))
    trace.join(a, trace.channels.parts(a, np.array([0, 0])))
    assert all("do not agree" in space.stays for space in find_spaces(trace))
