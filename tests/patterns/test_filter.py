"""Filter masks."""

from __future__ import annotations

import torch

from lightning_nm.patterns import Filter, parse


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
