"""N from a layer's density."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from lightning_nm import select
from lightning_nm.conversion import n_for_density, one_shot, overrides_for
from tests.conversion.networks import mlp


def at_least(zeros: int, density: float, m: int) -> float:
    """The probability of so many zeros among m, summed over all 2^m groups."""
    groups = product((False, True), repeat=m)
    return sum(density ** sum(g) * (1 - density) ** (m - sum(g)) for g in groups if m - sum(g) >= zeros)


@pytest.mark.parametrize("m", [2, 4, 8])
@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("confidence", [0.55, 0.93, 0.995])
def test_the_most_zeros_that_are_confident(density: float, m: int, confidence: float) -> None:
    """One more zero per group would be reached less often than asked."""
    n = n_for_density(density, m, confidence)
    assert n == m or at_least(m - n, density, m) > confidence
    assert n == 1 or at_least(m - n + 1, density, m) <= confidence


@pytest.mark.parametrize(
    ("density", "n", "m", "probability"),
    [(0.5, 2, 4, 0.6875), (0.5, 4, 8, 0.6367), (0.2, 2, 4, 0.9728), (0.2, 4, 8, 0.9896)],
)
def test_published_probabilities(density: float, n: int, m: int, probability: float) -> None:
    """Hubara et al. count zeros: half of them at a density of .5 and .2."""
    assert n_for_density(density, m, probability - 1e-4) <= n
    assert n_for_density(density, m, probability + 1e-4) > n


@pytest.mark.parametrize(("density", "n"), [(0.0, 1), (1.0, 8)])
def test_the_ends(density: float, n: int) -> None:
    """A pattern keeps at least one; without zeros it keeps all."""
    assert n_for_density(density, 8) == n


@pytest.mark.parametrize(
    ("density", "m", "confidence", "message"),
    [
        (1.5, 4, 0.9, "density"),
        (-0.1, 4, 0.9, "density"),
        (float("nan"), 4, 0.9, "density"),
        (0.5, 0, 0.9, "M=0"),
        (0.5, 4, 0.0, "confidence"),
        (0.5, 4, 1.0, "confidence"),
    ],
)
def test_bad_arguments_are_named(density: float, m: int, confidence: float, message: str) -> None:
    """Each with its range."""
    with pytest.raises(ValueError, match=message):
        n_for_density(density, m, confidence)


def test_each_layer_by_its_own_density() -> None:
    """Usable as the overrides of a selection: sparser layers get a smaller N, dense ones stay dense."""
    model = nn.Sequential(*mlp(64, 64, 64, 64), nn.Linear(64, 6), nn.Linear(6, 2))
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for index, density in ((0, 0.5), (2, 0.1), (5, 0.2)):
            weight = model[index].weight
            weight[torch.rand(weight.shape, generator=rng) > density] = 0.0
    overrides = overrides_for(model, 8, 0.95, ignore=["5"])
    selection = select(model, "8:8", ignore=["5"], overrides=overrides)
    assert overrides == {"0.weight": "6:8", "2.weight": "2:8", "4.weight": None}
    assert [(w.name, str(w.pattern)) for w in selection.weights] == [("0.weight", "6:8"), ("2.weight", "2:8")]
    assert min(weight.retained for weight in one_shot(selection).weights) > 0.97
