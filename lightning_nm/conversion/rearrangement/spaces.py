"""Spaces: channels that can change places with one another, and where they sit in parameters and buffers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.channels import Ids
from lightning_nm.conversion.rearrangement.trace import TAPS, Axes, Trace
from lightning_nm.training.selection import plain_name


@dataclass(frozen=True, eq=False)
class Site:
    """A dimension of a parameter or buffer in which the channels of a space sit."""

    name: str
    dim: int
    positions: Tensor
    """``[channels, parts]`` int64: row i holds the positions of the i-th channel (several after a flatten)."""
    size: int
    """Of the dimension."""
    dims: int
    """Of the parameter or buffer."""

    def index(self, order: Tensor) -> Tensor:
        """Where each position of the dimension takes its values from, when slot i gets channel ``order[i]``."""
        index = torch.arange(self.size)
        index[self.positions] = self.positions[order]
        return index


@dataclass(frozen=True)
class Space:
    """Channels that any permutation may reorder, if all its sites are permuted alike."""

    sites: tuple[Site, ...]
    size: int
    """Number of channels."""
    stays: str = ""
    """Why they must not move; empty where they may."""

    def weights(self) -> tuple[str, ...]:
        """The weights that hold them, with the dimension; without vectors."""
        return tuple(f"{plain_name(site.name)}[{site.dim}]" for site in self.sites if site.dims > 1)

    def where(self) -> str:
        return ", ".join(self.weights() or [site.name for site in self.sites])


class Moves:
    """Spaces in new orders: what that does to each parameter and buffer."""

    def __init__(self, orders: Iterable[tuple[Space, Tensor]] = ()) -> None:
        self._indices: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        for space, order in orders:
            for site in space.sites:
                self._indices[site.name].append((site.dim, site.index(order)))

    @property
    def names(self) -> list[str]:
        return list(self._indices)

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """A permuted copy of the tensor of that name; what does not move is returned as it is."""
        for dim, index in self._indices.get(name, ()):
            tensor = tensor.index_select(dim, index.to(tensor.device))
        return tensor


def find_spaces(trace: Trace) -> list[Space]:
    """Every space of a traced model, in the order in which their parameters are first used, those that stay last."""
    channels = trace.channels
    kinds = _kinds(trace)
    reasons = channels.reasons()
    # kind, reason -> sites; channels of a kind that stay for different reasons are reported apart
    sites: dict[tuple[int, str], list[_Found]] = {}
    for name, axes in trace.held.items():
        for dim, axis in enumerate(axes):
            if isinstance(axis, str):
                continue
            roots, places = channels.resolve(axis)
            why = [reasons.get(int(root), "") for root in roots]
            for key in dict.fromkeys(zip((kinds[int(root)] for root in roots), why)):
                at = np.array([i for i, root in enumerate(roots) if (kinds[int(root)], why[i]) == key])
                sites.setdefault(key, []).append(_Found(name, dim, at, roots[at], places[at], axes))
    spaces = [_space(found, reason) for (_, reason), found in sites.items() if reason != TAPS]
    return sorted(spaces, key=lambda space: bool(space.stays))


class _Found(NamedTuple):
    name: str
    dim: int
    at: Ids
    """Positions in the dimension."""
    roots: Ids
    """The channels there."""
    places: Ids
    """Which parts of them."""
    axes: Axes
    """Of the whole parameter or buffer."""


def _space(found: list[_Found], reason: str) -> Space:
    slots = {root: slot for slot, root in enumerate(dict.fromkeys(root for f in found for root in f.roots.tolist()))}
    sites = tuple(_site(f, np.array([slots[root] for root in f.roots.tolist()])) for f in found)
    return Space(sites, len(slots), reason or ("" if len(slots) > 1 else "there is none like it"))


def _site(found: _Found, slots: Ids) -> Site:
    # by channel, then by part, then as they come
    positions = found.at[np.lexsort((found.places, slots))]
    # a space that stays may hold its channels any number of times
    parts = len(positions) // len(set(slots.tolist()))
    axis = found.axes[found.dim]
    rows = positions.reshape(-1, parts) if len(positions) % parts == 0 else positions[:, None]
    return Site(found.name, found.dim, torch.from_numpy(rows), len(axis), len(found.axes))


def _kinds(trace: Trace) -> dict[int, int]:
    """A number for every channel, the same for those that every dimension treats alike."""
    kinds: dict[int, int] = {}
    number = count(1)
    for roots, places in _distinct(trace):
        order = np.lexsort((places, roots))
        starts = np.flatnonzero(np.diff(roots[order], prepend=-1))
        # numbers are never used again, so that what this dimension does not hold is told apart too
        fresh: dict[tuple[int, bytes], int] = defaultdict(lambda: next(number))
        for part in np.split(order, starts[1:]):
            root = int(roots[part[0]])
            kinds[root] = fresh[kinds.get(root, 0), places[part].tobytes()]
    return kinds


def _distinct(trace: Trace) -> Iterable[tuple[Ids, Ids]]:
    resolved = [trace.channels.resolve(ids) for ids in trace.groups.values()]
    return {(roots.tobytes(), places.tobytes()): (roots, places) for roots, places in resolved}.values()
