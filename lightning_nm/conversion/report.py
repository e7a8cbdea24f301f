"""What a conversion did, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_nm.patterns import Pattern
from lightning_nm.training.selection import Skipped, skipped_rows


class Converted(NamedTuple):
    """A weight that has become sparse."""

    name: str
    shape: tuple[int, ...]
    pattern: Pattern
    dim: int
    """The reduction dimension."""
    retained: float
    """Share of the sum of magnitudes that the mask kept."""
    masked_error: float | None = None
    """Squared error of its module's output on the calibration data over the dense output's square, when only masked.
    None: not measured."""
    error: float | None = None
    """The same after reconstruction."""
    remark: str = ""


@dataclass(frozen=True)
class Conversion:
    """Every parameter of a converted model: made sparse, or skipped with the reason."""

    weights: list[Converted]
    skipped: list[Skipped]

    COLUMNS = ("layer", "shape", "pattern", "retained", "error, masked", "reconstructed", "remarks")

    def rows(self) -> list[tuple[object, ...]]:
        """A table under ``COLUMNS``: a row for each weight, then one for each skipped one; vectors share a row."""
        rows: list[tuple[object, ...]] = [
            (w.name, list(w.shape), w.pattern, f"{w.retained:.1%}", _short(w.masked_error), _short(w.error), w.remark)
            for w in self.weights
        ]
        return rows + [(name, shape, "dense", "", "", "", why) for name, shape, why in skipped_rows(self.skipped)]

    def record(self) -> dict[str, dict[str, Any]]:
        """Pattern and reduction dimension by name, as builtins: what a checkpoint says of its sparse weights."""
        return {weight.name: {"pattern": str(weight.pattern), "dim": weight.dim} for weight in self.weights}


def _short(error: float | None) -> str:
    return "" if error is None else f"{error:.2%}"
