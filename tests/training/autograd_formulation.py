"""SR-STE as its published code writes it: an autograd function inside the layer, the parameter dense.

Nothing of lightning_nm is in here, so that training with it is an independent answer to compare with.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def argsort_mask(weight: Tensor, n: int, m: int) -> Tensor:
    """Float mask, 1 at the ``n`` largest of every ``m`` consecutive input channels."""
    rows = weight.detach().movedim(1, -1)  # [O, taps..., I]
    groups = rows.abs().reshape(-1, m)
    largest = groups.argsort(dim=1, descending=True, stable=True)[:, :n]
    mask = torch.zeros_like(groups).scatter_(1, largest, 1.0)
    return mask.reshape(rows.shape).movedim(-1, 1)


class SparseRefinedSTE(torch.autograd.Function):
    """Forward ``E * w``; backward ``grad + decay * (1 - E) * w`` (Zhou et al., ICLR 2021, eq. 8 and 9)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, n: int, m: int, decay: float) -> Tensor:
        mask = argsort_mask(weight, n, m)
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return mask * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        weight, mask = ctx.saved_tensors
        return grad + ctx.decay * (1 - mask) * weight, None, None, None


class _Twin(nn.Module):
    """A layer whose dense weight is the parameter and whose sparse weight lives for one forward."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, n: int, m: int, decay: float) -> None:
        super().__init__()
        self.weight, self.bias = copy.deepcopy(layer.weight), copy.deepcopy(layer.bias)
        self.settings = n, m, decay

    def sparse(self) -> Tensor:
        return SparseRefinedSTE.apply(self.weight, *self.settings)

    def mask(self) -> Tensor:
        n, m, _ = self.settings
        return argsort_mask(self.weight, n, m).bool()


class TwinLinear(_Twin):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.sparse(), self.bias)


class TwinConv2d(_Twin):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.sparse(), self.bias)


def autograd_twin(layer: nn.Linear | nn.Conv2d, n: int, m: int, decay: float) -> TwinLinear | TwinConv2d:
    """The same layer (a convolution of stride 1 without padding), trained the published way."""
    return (TwinLinear if isinstance(layer, nn.Linear) else TwinConv2d)(layer, n, m, decay)
