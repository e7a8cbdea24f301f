"""The entropic plan: a transport of N per row and column, the same on any device."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.kernels.transposable import entropic
from lightning_nm.kernels.transposable.layout import scores_of
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 8), (4, 8), (7, 13), (16, 32)])
def test_the_plan_is_finite(n: int, m: int, kind: str) -> None:
    """Whatever the magnitudes."""
    plan = entropic.plan(scores_of(tiles_of_kind(kind, 4, m)), n)
    assert bool(torch.isfinite(plan).all())
    assert float(plan.min()) >= 0


def test_the_plan_sums_to_n() -> None:
    """Nearly, in rows and columns, where no entry counts more than 1."""
    torch.manual_seed(0)
    plan = entropic.plan(scores_of(torch.randn(50, 16, 16)), 8).clamp(max=1)
    for dim in (1, 2):
        assert float((plan.sum(dim) - 8).abs().mean()) < 0.05


def test_the_plan_is_nearly_a_mask() -> None:
    """Entropy's weight has fallen: entries near a half are the exception."""
    torch.manual_seed(0)
    plan = entropic.plan(scores_of(torch.randn(50, 16, 16)), 8).clamp(max=1)
    assert float(((plan > 0.25) & (plan < 0.75)).float().mean()) < 0.15


def test_a_batch_is_its_tiles() -> None:
    """Bit for bit: sums are taken in an order that does not depend on the batch."""
    scores = scores_of(torch.randn(9, 7, 7))
    together = entropic.plan(scores, 3)
    assert torch.equal(torch.cat([entropic.plan(score[None], 3) for score in scores]), together)


def test_powers_of_two_are_followed() -> None:
    """The chord stays within a percent of 2^f, and meets it at whole numbers."""
    f = torch.linspace(0, 1, 101, dtype=torch.float64)
    chord = 1 + f * (entropic.CHORD + (1 - entropic.CHORD) * f)
    assert float((chord / 2**f - 1).abs().max()) < 0.01
    assert chord[[0, -1]].tolist() == [1.0, 2.0]
