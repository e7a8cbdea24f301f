"""Small models with every kind of layer that conversion meets, and data for them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm.training import Selection


class LastOutput(nn.Module):
    """The sequence that a recurrent layer or an attention returns, without its states or weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        attends = isinstance(self.inner, nn.MultiheadAttention)
        outputs: Tensor = (self.inner(x, x, value=x) if attends else self.inner(x))[0]
        return outputs


class Own(nn.Module):
    """A layer type of a user's: weight [in, out], bias, two calls of a GEMM."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / 4)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor, *, twice: bool = True) -> dict[str, Tensor | int]:
        return {"out": F.linear(x, self.weight.t(), self.bias) * (2 if twice else 1), "calls": 2}


# layer, shape of its input
LAYERS = {
    "linear": (lambda: nn.Linear(16, 8), (32, 16)),
    "no bias": (lambda: nn.Linear(16, 8, bias=False), (4, 8, 16)),
    "conv1d": (lambda: nn.Conv1d(8, 4, 3), (8, 8, 9)),
    "conv2d, grouped": (lambda: nn.Conv2d(16, 8, 3, groups=2, padding=1), (4, 16, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(8, 4, 2), (4, 8, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 4, 3, stride=2), (4, 8, 3, 3)),
    "transposed, grouped": (lambda: nn.ConvTranspose1d(16, 8, 3, groups=2), (4, 16, 6)),
    "attention": (lambda: LastOutput(nn.MultiheadAttention(16, 2, batch_first=True)), (6, 5, 16)),
    "lstm": (lambda: LastOutput(nn.LSTM(8, 12, 2, bidirectional=True, batch_first=True)), (6, 5, 8)),
    "gru": (lambda: LastOutput(nn.GRU(8, 12)), (5, 6, 8)),
    "lstm cell": (lambda: LastOutput(nn.LSTMCell(8, 12)), (16, 8)),
    "own": (lambda: Own(16, 4), (16, 16)),
}


QUICK: dict[str, Any] = {"iterations": 60, "lr": 3e-3, "progress": False}
"""Enough of AdaPrune for these layers."""


def obeys(selection: Selection) -> bool:
    """Whether every selected weight has its pattern."""
    return not any(weight.pattern.violations(weight.param, dim=weight.dim) for weight in selection.weights)


def batches(shape: tuple[int, ...], count: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Correlated features with a mean, as activations have them: where inputs are white nothing can be made good."""
    rng = torch.Generator().manual_seed(7)
    last = shape[-1]
    mixing = torch.randn(last, last, generator=rng) / last**0.5
    return [(torch.randn(shape, generator=rng) @ mixing + 0.5).to(dtype) for _ in range(count)]


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    """Linears with ReLUs in between."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def values(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
