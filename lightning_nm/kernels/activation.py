"""Activations that a product may end with, by name, in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional as F


def _nothing(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": _nothing,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


def activated(x: Tensor, activation: str) -> Tensor:
    """X after one of `ACTIVATIONS`."""
    return ACTIVATIONS[activation](x)
