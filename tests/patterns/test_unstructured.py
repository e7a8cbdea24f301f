"""Unstructured masks."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.patterns import Unstructured, parse


def test_the_largest_of_the_layer_stay() -> None:
    """Wherever they are."""
    weight = torch.tensor([[1.0, -9.0, 8.0], [2.0, 3.0, 7.0]])
    assert Unstructured(0.5).mask(weight).tolist() == [[False, True, True], [False, False, True]]


def test_retained_magnitude_of_gaussian_weights() -> None:
    """At one half exp(-q^2 / 2), q = .6745 the quartile: the bound for every pattern of that density."""
    torch.manual_seed(0)
    weight = torch.randn(400, 400)
    kept = (weight.abs() * Unstructured(0.5).mask(weight)).sum() / weight.abs().sum()
    assert float(kept) == pytest.approx(0.7966, abs=0.003)


def test_written_form() -> None:
    """Read back."""
    assert parse("Unstructured@.9") == parse(str(Unstructured(0.9))) == Unstructured(0.9)
