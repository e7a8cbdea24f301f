"""Activations by name."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_nm.kernels.activation import ACTIVATIONS, activated

FORMULAS = {
    "none": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_by_formula(activation: str) -> None:
    """Each name means what papers mean by it."""
    x = torch.linspace(-6, 6, 25, dtype=torch.float64)
    expected = torch.tensor([FORMULAS[activation](each) for each in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(activated(x, activation), expected)
