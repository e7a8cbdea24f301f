"""What the splits of a weight have counted."""

from __future__ import annotations

import torch
from torch import Tensor


class Tally:
    """Mask entries that changed, and entries that were NaN or infinite, since each was last taken.

    Numbers on a CPU. Elsewhere kernels add to a tensor of the weight's device, so that no step waits for it or
    launches anything.
    """

    def __init__(self) -> None:
        self._numbers: list[int | Tensor] = [0, 0]
        self._counts: Tensor | None = None

    def on(self, device: torch.device) -> Tensor | None:
        """What a split there is to add to, int64 ``[2]``; None on a CPU, where `add` takes the numbers."""
        if self._counts is not None and self._counts.device != device:
            self._numbers = [int(self.flips), int(self.nonfinite)]
            self._counts = None
        if self._counts is None and device.type != "cpu":
            self._counts = torch.zeros(2, dtype=torch.int64, device=device)
        return self._counts

    def add(self, flips: int | Tensor, nonfinite: int | Tensor) -> None:
        self._numbers = [self._numbers[0] + flips, self._numbers[1] + nonfinite]

    @property
    def waits(self) -> bool:
        """Whether to read the counts is to wait for a device."""
        return self._counts is not None

    @property
    def flips(self) -> int | Tensor:
        return self._total(0)

    @flips.setter
    def flips(self, count: int) -> None:
        self._set(0, count)

    @property
    def nonfinite(self) -> int | Tensor:
        return self._total(1)

    @nonfinite.setter
    def nonfinite(self, count: int) -> None:
        self._set(1, count)

    def _total(self, which: int) -> int | Tensor:
        return self._numbers[which] if self._counts is None else self._counts[which] + self._numbers[which]

    def _set(self, which: int, count: int) -> None:
        self._numbers[which] = count
        if self._counts is not None:
            self._counts[which] = 0
