"""What a rearrangement did, space by space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Rearranged(NamedTuple):
    """Channels that change places among one another only, and what became of them."""

    weights: tuple[str, ...]
    """The weights that hold them, with the dimension: ``conv1.weight[0]``."""
    vectors: int
    """How many biases, scales and statistics hold them too."""
    size: int
    """Number of channels."""
    moved: bool
    reason: str
    """Why they stayed; empty where they moved."""
    before: float | None = None
    """Share of the magnitude of the sparse weights among ``weights`` that their patterns retained. None: no pattern
    depends on the order of these channels."""
    after: float | None = None


@dataclass(frozen=True)
class Rearrangement:
    """Every space of a model. ``before`` and ``after`` are the shares of the magnitude of all selected weights that
    their patterns retain.
    """

    spaces: list[Rearranged]
    before: float
    after: float
    notes: list[str]
    """What could not be looked at."""

    COLUMNS = ("channels", "held by", "moved", "retained", "rearranged", "remarks")

    def rows(self) -> list[tuple[object, ...]]:
        """A table under ``COLUMNS``: what moved, then what stayed, by reason; the last row is the total.

        Spaces in the same weights (one for each group of a grouped convolution) share a row.
        """
        rows: list[tuple[object, ...]] = []
        alike: dict[object, list[Rearranged]] = {}
        for space in self.spaces:
            key = (space.weights, space.size, space.moved, space.reason) if _counts(space) else space.reason
            alike.setdefault(key, []).append(space)
        for spaces in alike.values():
            first = spaces[0]
            if _counts(first):
                times = f"{len(spaces)} x " if len(spaces) > 1 else ""
                before, after = _mean([s.before for s in spaces]), _mean([s.after for s in spaces])
                rows.append(
                    (f"{times}{first.size}", _holders(spaces[:1]), _yes(first.moved), before, after, first.reason)
                )
            else:
                sizes = ", ".join(str(size) for size in sorted({space.size for space in spaces}))
                rows.append((sizes, _holders(spaces), "no", "", "", first.reason))
        rows += [("", "", "", "", "", note) for note in self.notes]
        return [*rows, ("all", "", "", f"{self.before:.2%}", f"{self.after:.2%}", "all selected weights")]


def _counts(space: Rearranged) -> bool:
    return space.before is not None


def _yes(moved: bool) -> str:
    return "yes" if moved else "no"


def _mean(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return f"{sum(known) / len(known):.2%}"


def _holders(spaces: list[Rearranged]) -> str:
    names = dict.fromkeys(name for space in spaces for name in space.weights)
    vectors = sum(space.vectors for space in spaces)
    return ", ".join([*names, *([f"{vectors} vector{'s' if vectors > 1 else ''}"] if vectors else [])])
