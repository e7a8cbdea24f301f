"""Which channels move together: a union-find over the positions of tensor dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

# a channel is made of channels which are made of channels ...: flattening twice gives two levels, a cycle gives no end
_DEEPEST = 8

_AT_ODDS = "its channels are divided in two ways that do not agree"


class Channels:
    """Every position of a dimension that may move is a channel, known by a number.

    Channels that were *joined* move together. A channel may be *part* of another: flattening ``[C, H, W]`` makes
    H * W parts of each of C channels, told apart by a number (``place``), which move as one with the channel. Two
    channels change places with all their parts: the part of one at a place with the part of the other at that place.
    """

    def __init__(self) -> None:
        self._size = 0
        self._parent = np.empty(0, np.int64)
        # by representative: the channel that it is a part of (-1: of none), its place there
        self._whole = np.empty(0, np.int64)
        self._place = np.empty(0, np.int64)
        # by representative: made as a constant and joined to nothing else, so that its content is the same everywhere
        self._constant = np.empty(0, bool)
        self._pinned: dict[int, str] = {}
        self._paths: dict[tuple[int, int], int] = {}

    def new(self, count: int, *, constant: bool = False) -> Ids:
        """``count`` channels that move alone."""
        return self._add(np.full(count, -1, np.int64), np.zeros(count, np.int64), constant)

    def parts(self, wholes: Ids, places: Ids) -> Ids:
        """A part of each of ``wholes``, at ``places``."""
        return self._add(wholes, places, False)

    def _add(self, wholes: Ids, places: Ids, constant: bool) -> Ids:
        ids = np.arange(self._size, self._size + len(wholes))
        self._size += len(ids)
        if self._size > len(self._parent):
            grown = max(2 * len(self._parent), self._size)
            for name in ("_parent", "_whole", "_place", "_constant"):
                old = getattr(self, name)
                new = np.empty(grown, old.dtype)
                new[: len(old)] = old
                setattr(self, name, new)
        self._parent[ids] = ids
        self._whole[ids] = wholes
        self._place[ids] = places
        self._constant[ids] = constant
        return ids

    def find(self, ids: Ids) -> Ids:
        """The representative of each."""
        found = self._parent[ids]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                self._parent[ids] = found
                return found
            found = above

    def _one(self, i: int) -> int:
        """`find`, of a single channel."""
        while (above := int(self._parent[i])) != i:
            i = above
        return i

    def join(self, a: Ids, b: Ids) -> None:
        """From now on the i-th of ``a`` moves with the i-th of ``b``."""
        apart = self.find(a) != self.find(b)
        pairs = list(zip(a[apart].tolist(), b[apart].tolist()))
        while pairs:
            first, second = sorted(map(self._one, pairs.pop()))
            if first == second:
                continue
            self._parent[second] = first
            self._constant[first] &= self._constant[second]
            if reason := self._pinned.pop(second, ""):
                self._pinned.setdefault(first, reason)
            if self._whole[second] < 0:
                continue
            if self._whole[first] < 0:
                self._whole[first], self._place[first] = self._whole[second], self._place[second]
            elif self._place[first] == self._place[second]:
                pairs.append((int(self._whole[first]), int(self._whole[second])))
            else:
                self._pinned.setdefault(first, _AT_ODDS)
                self._pinned.setdefault(self._one(int(self._whole[second])), self._pinned[first])

    def pin(self, ids: Ids, reason: str) -> None:
        """These stay where they are. The first reason is kept."""
        for i in np.unique(self.find(ids)):
            self._pinned.setdefault(int(i), reason)

    def are_constant(self, ids: Ids) -> bool:
        return bool(self._constant[self.find(ids)].all())

    def resolve(self, ids: Ids) -> tuple[Ids, Ids]:
        """(the channel that each is a part of, and itself part of none; a number for its place there, 0 if it is all).

        Channels that are parts of themselves are pinned.
        """
        roots = self.find(ids).copy()
        paths = np.zeros(len(ids), np.int64)
        for _ in range(_DEEPEST):
            inner = self._whole[roots] >= 0
            if not inner.any():
                return roots, paths
            places = self._place[roots[inner]]
            steps, which = np.unique(np.stack([places, paths[inner]]), axis=1, return_inverse=True)
            names = [self._paths.setdefault((int(p), int(q)), len(self._paths) + 1) for p, q in steps.T]
            paths[inner] = np.array(names)[which.reshape(-1)]
            roots[inner] = self.find(self._whole[roots[inner]])
        self.pin(roots[self._whole[roots] >= 0], _AT_ODDS)
        return roots, paths

    def reasons(self) -> dict[int, str]:
        """Every channel (by the representative of what it is a part of) that stays, and why."""
        found: dict[int, str] = {}
        for i, reason in list(self._pinned.items()):
            found.setdefault(int(self.resolve(np.array([i]))[0][0]), reason)
        return found
