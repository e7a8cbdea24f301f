"""Patterns that keep the units of largest norm in a whole layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from math import floor, lgamma, prod

from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns.base import Pattern


class LayerBudget(Pattern):
    """Of a layer's units the ``sparsity`` share of smallest l1 norm goes, rounded down; ties go to the lowest index.

    A unit is a block of outputs x inputs x taps, and is kept or removed as a whole.
    """

    sparsity: float

    def __post_init__(self) -> None:
        number = isinstance(self.sparsity, (int, float)) and not isinstance(self.sparsity, bool)
        if not (number and 0 <= self.sparsity < 1):
            raise ValueError(f"sparsity is the share that goes, at least 0 and less than 1; got {self.sparsity!r}")
        object.__setattr__(self, "sparsity", float(self.sparsity))  # one written form

    @abstractmethod
    def _unit(self, shape: Sequence[int], dim: int) -> dict[int, int]:
        """Size of a unit along each dimension of a weight; 1 where a dimension is not named."""

    @property
    def density(self) -> float:
        return float(1 - _exactly(self.sparsity))

    @property
    def layerwise(self) -> bool:
        return True

    def kept_units(self, units: int) -> int:
        """How many of so many units stay."""
        return units - floor(_exactly(self.sparsity) * units)

    def why_not(
        self, shape: Sequence[int], *, dim: int = 1, span: int | None = None, rows: int | None = None
    ) -> str | None:
        return None

    def unit_norms(self, weight: Tensor, *, dim: int = 1) -> Tensor:
        """The l1 norm of every unit, float64: the weight's shape, divided by the unit's."""
        return kernels.unit_norms(weight, self._unit(weight.shape, dim))

    def _mask(self, weight: Tensor, dim: int) -> Tensor:
        norms = self.unit_norms(weight, dim=dim)
        mask = kernels.largest(norms, self.kept_units(norms.numel()))
        for d, size in self._unit(weight.shape, dim).items():
            mask = mask.repeat_interleave(size, d)
        return mask

    def violations(self, weight: Tensor, *, dim: int = 1) -> int:
        self.check(weight, dim)
        held = kernels.held_units(weight, self._unit(weight.shape, dim))
        return max(0, int(held.sum()) - self.kept_units(held.numel()))

    def log_diversity(self, shape: Sequence[int], *, dim: int = 1, exact: bool = True) -> float:
        self.check_shape(shape)
        units = prod(shape) // max(1, prod(self._unit(shape, dim).values()))
        kept = self.kept_units(units)
        return lgamma(units + 1) - lgamma(kept + 1) - lgamma(units - kept + 1)


def _exactly(sparsity: float) -> Fraction:
    """As it is written: .7 of 10 units are 7, not 6.999..."""
    return Fraction(repr(sparsity))
