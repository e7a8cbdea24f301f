"""Filter masks."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_nm.patterns import Filter, parse
from lightning_nm.training import select


def test_whole_filters_stay() -> None:
    """Those of the largest norms."""
    weight = torch.tensor([3.0, 1.0, 4.0, 2.0])[:, None, None] * torch.ones(4, 5, 3)
    assert Filter(0.5).mask(weight)[:, 0, 0].tolist() == [True, False, True, False]
    assert Filter(0.5).mask(weight).flatten(1).all(1).tolist() == [True, False, True, False]


def test_outputs_of_a_transposed_layer() -> None:
    """Lie along dimension 1 where inputs lie along 0."""
    weight = torch.tensor([3.0, 1.0]) * torch.ones(4, 2)
    assert Filter(0.5).mask(weight, dim=0).tolist() == [[True, False]] * 4


def test_written_form() -> None:
    """Read back."""
    assert parse("filter@0.5") == parse(str(Filter(0.5))) == Filter(0.5)


def test_grouped_transposed_convolutions_are_refused() -> None:
    """Their outputs of different groups lie at the same index."""
    model = torch.nn.Sequential(torch.nn.ConvTranspose2d(16, 32, 2, groups=2))
    [skipped] = [s for s in select(model, "filter@0.5").skipped if s.name == "0.weight"]
    assert skipped.reason == "filters of a grouped transposed convolution do not lie along its dimensions"


def test_diversity_along_the_outputs() -> None:
    """C(16, 8) masks of 16 filters, whichever dimension they lie along."""
    expected = math.log(math.comb(16, 8))
    assert Filter(0.5).log_diversity((16, 4, 3)) == pytest.approx(expected)
    assert Filter(0.5).log_diversity((4, 16, 3), dim=0) == pytest.approx(expected)
