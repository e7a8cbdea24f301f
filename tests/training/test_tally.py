"""What splits count, until somebody asks."""

from __future__ import annotations

import torch

from lightning_nm.training.tally import Tally

CPU = torch.device("cpu")


def test_numbers_on_a_cpu() -> None:
    """Nothing but Python's own numbers: nothing to wait for."""
    tally = Tally()
    assert tally.on(CPU) is None
    tally.add(3, 1)
    tally.add(2, 0)
    assert (tally.flips, tally.nonfinite, tally.waits) == (5, 1, False)
    tally.flips = 0
    assert (tally.flips, tally.nonfinite) == (0, 1)


def test_a_device_counts_for_itself() -> None:
    """Elsewhere there is one tensor for all splits, and reading it waits."""
    tally = Tally()
    tally.add(3, 1)
    counts = tally.on(torch.device("meta"))
    assert counts is tally.on(torch.device("meta"))
    assert (counts.dtype, counts.shape, tally.waits) == (torch.int64, (2,), True)


def test_counts_survive_a_move() -> None:
    """A model that is moved keeps what was counted, and new counts come on top."""
    tally = Tally()
    tally._counts = torch.tensor([4, 2])  # as a card would have left them
    tally.add(3, 1)
    assert (int(tally.flips), int(tally.nonfinite)) == (7, 3)
    tally.nonfinite = 0
    assert (int(tally.flips), int(tally.nonfinite)) == (7, 0)
    tally.on(torch.device("meta"))
    assert (tally._numbers, tally._counts.device.type) == ([7, 0], "meta")
