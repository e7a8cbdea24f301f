"""An operation between a layer that makes channels and a layer that reads them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_nm.conversion.rearrangement.flow import TOLERANCE, Flow
from tests.conversion.rearrangement.networks import random_values
from tests.conversion.rearrangement.test_flow import assert_same_function, moving, shuffled

Op = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """``[2, 3, 4, 6] -> a -> [2, 8, 4, 6] -> op -> b``; b reads dimension 1 of four, or the last of fewer."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.a, self.op = nn.Conv2d(3, 8, 1), op
        y = op(self.a(torch.randn(2, 3, 4, 6)))
        self.b = nn.Conv2d(y.shape[1], 4, 1) if y.dim() == 4 else nn.Linear(y.shape[-1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.op(self.a(x)))


def check(op: Op, moves: bool) -> None:
    """Whether the channels may move, and that nothing else changes when they do; reasons are given if not."""
    torch.manual_seed(0)
    model, x = random_values(Between(op)), torch.randn(2, 3, 4, 6)
    flow = Flow(model, x)
    assert not flow.notes
    assert ("a.weight[0]" in moving(flow)) is moves
    orders = shuffled(flow)
    assert flow.difference(orders) <= TOLERANCE
    assert_same_function(model, x, orders)
    assert moves or all(space.stays for space in flow.spaces if "a.weight[0]" in space.weights())
