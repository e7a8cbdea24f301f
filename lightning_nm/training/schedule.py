"""When things happen in training, counted in optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When a weight is sparse, when its mask moves, and how strong the decay is.

    Every number counts optimizer steps of the weight in question: accumulated micro-batches make one
    step, a step that a gradient scaler skips makes none.

    Args:
        start: the first step at which weights are sparse; before it they train dense.
        refresh: recompute the masks every so many steps. Between two refreshes the hidden part keeps
            learning while the mask stays. None: as the pattern has it, at every step, or every 40th for
            transposable masks (Hubara et al., NeurIPS 2021).
        ramp: steps over which the decay rises linearly from 0 to its full strength.
        freeze: the last step at which masks move. None: they always may.
        dense_from: the step from which weights are dense again, hidden part included: a dense tail
            (2:4 pre-training, ICML 2024), or masks for a phase only. None: never.

    Raises:
        ValueError: a number that makes no sense, by name.
    """

    start: int = 0
    refresh: int | None = None
    ramp: int = 0
    freeze: int | None = None
    dense_from: int | None = None

    def __post_init__(self) -> None:
        for name, steps in vars(self).items():
            if type(steps) is not int and not (steps is None and name in ("refresh", "freeze", "dense_from")):
                raise ValueError(f"schedule {name}={steps!r}: optimizer steps are whole numbers")
        if self.start < 0 or self.ramp < 0:
            raise ValueError(f"schedule steps cannot be negative: start={self.start}, ramp={self.ramp}")
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"schedule refresh={self.refresh}: masks are recomputed every 1 or more steps")
        if self.freeze is not None and self.freeze < self.start:
            raise ValueError(f"schedule freeze={self.freeze} lies before start={self.start}")
        if self.dense_from is not None and self.dense_from <= self.start:
            raise ValueError(f"schedule dense_from={self.dense_from} must lie after start={self.start}")

    def sparse(self, step: int) -> bool:
        """Whether weights are sparse after ``step`` steps."""
        return self.start <= step and not self.over(step)

    def over(self, step: int) -> bool:
        """Whether weights have been handed over dense after ``step`` steps."""
        return self.dense_from is not None and step >= self.dense_from

    def refreshes(self, step: int, otherwise: int = 1) -> bool:
        """Whether the mask is recomputed after step number ``step``; ``otherwise``: the pattern's own interval."""
        due = (step - self.start) % (self.refresh or otherwise) == 0
        return due and (self.freeze is None or step <= self.freeze)

    def strength(self, step: int) -> float:
        """Fraction of the full decay that the update after ``step`` steps uses."""
        return min(1.0, (step - self.start) / self.ramp) if self.ramp else 1.0
