"""Operations on each element, and constants."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.conversion.rearrangement.rules.between import Op, check

ACTIVATIONS = (
    *("relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "mish", "silu", "gelu", "elu", "selu", "celu"),
    *("softplus", "softsign", "leaky_relu", "logsigmoid", "tanhshrink", "softshrink", "hardshrink", "rrelu"),
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    check(getattr(F, name), True)


def written(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :4] = x[:, 4:]
    y[:, 4:].add_(x[:, :4]).mul_(2)
    return y


FOLLOWED: dict[str, Op] = {
    "in place": lambda x: F.relu(x.add_(1).mul_(x), inplace=True).clamp_(max=3),
    "where": lambda x: torch.where(x > 0, x.sin(), 0.5),
    "masked": lambda x: x.masked_fill(x.mean(1, keepdim=True) > 0, 0.0),
    "softmax over channels": lambda x: x.softmax(1) + x.log_softmax(1),
    "softmax over places": lambda x: x.softmax(-1),
    "constants": lambda x: x * torch.full((8, 1, 1), 2.0) + torch.ones(8, 4, 6),
    "written through views": written,
    "a number read": lambda x: x * x.mean().item(),
    "copied": lambda x: x.double().to(x.dtype).contiguous().clone().detach(),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1], dtype=x.dtype)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name: str) -> None:
    check(FOLLOWED[name], True)


STAYS: dict[str, Op] = {
    "numbered": lambda x: x * torch.arange(8.0, dtype=x.dtype).view(8, 1, 1),
    "noise": lambda x: x + 0.0 * torch.randn(8, 1, 1, dtype=x.dtype),
    "noise like it": lambda x: x + 0.0 * torch.randn_like(x),
    "nans": lambda x: torch.nan_to_num(x) * torch.linspace(0, 1, 8, dtype=x.dtype).view(8, 1, 1),
    "scattered": lambda x: torch.zeros_like(x).scatter(1, torch.zeros(2, 8, 4, 6, dtype=torch.long), x),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    check(STAYS[name], False)
