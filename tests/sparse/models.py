"""Models with sparse weights, and the same models as they compute without us, in float64."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_nm.patterns import NM, Block1xN, parse
from lightning_nm.sparse import Acceleration, accelerate
from lightning_nm.training import select

Module = TypeVar("Module", bound=nn.Module)

TOLERANCE = {
    torch.float64: {"atol": 1e-12, "rtol": 1e-12},
    torch.float32: {"atol": 2e-5, "rtol": 1e-4},
    torch.float16: {"atol": 1e-2, "rtol": 1e-2},
    torch.bfloat16: {"atol": 5e-2, "rtol": 2e-2},
}


class Conv1D(nn.Module):
    """GPT-2's: a Linear with an ``[in, out]`` weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


Conv1D.__module__ = "transformers.pytorch_utils"


def sparse(model: Module, pattern: str = "2:4") -> Module:
    """The model, its weights cut down to the pattern wherever that fits, for evaluation."""
    with torch.no_grad():
        for name, weight, pattern_, dim in select(model, pattern).weights:
            assert weight.requires_grad, name
            weight.copy_(torch.where(pattern_.mask(weight, dim=dim), weight, 0.0))
    return model.eval()


def sparse_weight(shape: tuple[int, ...], pattern: str = "2:4", *, dim: int = 1, seed: int = 0) -> Tensor:
    """A weight of that pattern."""
    parsed = parse(pattern)
    assert isinstance(parsed, (NM, Block1xN))
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(parsed.mask(weight, dim=dim), weight, 0.0)


def linear(inputs: int = 64, outputs: int = 32, pattern: str = "2:4", **kwargs: Any) -> nn.Linear:
    torch.manual_seed(0)
    return sparse(nn.Linear(inputs, outputs, **kwargs), pattern)


def in_double(model: nn.Module, *x: Any, **kwargs: Any) -> Any:
    """What the model's own weights give in float64."""

    def double(thing: Any) -> Any:
        return thing.double() if isinstance(thing, Tensor) and thing.is_floating_point() else thing

    with torch.no_grad():
        exact = copy.deepcopy(model).double()
        return exact(*map(double, x), **{key: double(value) for key, value in kwargs.items()})


def assert_near(out: Tensor, expected: Tensor) -> None:
    """To the precision of ``out``."""
    torch.testing.assert_close(out.double(), expected.double(), **TOLERANCE[out.dtype])


def accelerated(model: nn.Module, *, backend: str = "cpu") -> Acceleration:
    return accelerate(model, backend=backend)


def backends_of(acceleration: Acceleration) -> dict[str, set[str]]:
    """By weight: who multiplied."""
    return {name: {choice.backend for choice in choices} for name, choices in acceleration.choices.items()}
