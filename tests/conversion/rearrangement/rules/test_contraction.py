"""Layers that sum over channels, and convolutions in groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm.conversion.rearrangement.flow import TOLERANCE, Flow
from tests.conversion.rearrangement.networks import random_values
from tests.conversion.rearrangement.test_flow import assert_same_function, moving, shuffled

# layer from 8 channels, whether they may move, whether its outputs may
CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(8, 6, 3), True, True),
    "without bias, strided, dilated": (lambda: nn.Conv2d(8, 6, 2, 2, dilation=2, bias=False), True, True),
    "in groups": (lambda: nn.Conv2d(8, 12, 1, groups=2), True, True),
    "groups of one output": (lambda: nn.Conv2d(8, 2, 1, groups=2), True, False),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), True, True),
    "depthwise, three outputs each": (lambda: nn.Conv2d(8, 24, 3, groups=8), True, True),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3, 2), True, True),
    "transposed, in groups": (lambda: nn.ConvTranspose2d(8, 12, 2, groups=2), True, True),
    "transposed, one output a group": (lambda: nn.ConvTranspose2d(8, 2, 2, groups=2), True, False),
    "transposed, depthwise": (lambda: nn.ConvTranspose2d(8, 8, 2, groups=8), True, True),
    "transposed, depthwise, three outputs each": (lambda: nn.ConvTranspose2d(8, 24, 2, groups=8), True, True),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    """Inputs follow the layer before, outputs go to the layer after."""
    make, inputs_move, outputs_move = CONVOLUTIONS[name]
    torch.manual_seed(0)
    layer = make()
    outputs = layer.out_channels
    model = random_values(nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(outputs, 4, 1)))
    x = torch.randn(2, 3, 6, 6)
    flow = Flow(model, x)
    assert ("0.weight[0]" in moving(flow)) is inputs_move
    assert ("2.weight[1]" in moving(flow)) is outputs_move
    assert flow.difference(shuffled(flow)) <= TOLERANCE
    assert_same_function(model, x, shuffled(flow))


def test_a_grouped_convolution_of_the_input() -> None:
    """Nothing but the outputs of each group among themselves."""
    model, x = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.Conv2d(8, 4, 1)), torch.randn(2, 4, 3, 3)
    flow = Flow(model, x)
    assert [space.size for space in flow.spaces if not space.stays] == [4, 4]
    assert moving(flow) == {"0.weight[0]", "1.weight[1]"}
    assert_same_function(random_values(model), x, shuffled(flow))


class Attention(nn.Module):
    """One head, its query, key and value by three Linears."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.k, self.v, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.kind == "fused":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
            attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)[:, 0]
        elif self.kind == "einsum":
            attended = torch.einsum("bqk,bkc->bqc", torch.einsum("bqc,bkc->bqk", q, k).softmax(-1), v)
        elif self.kind == "baddbmm":
            attended = torch.baddbmm(v, (q @ k.mT).softmax(-1), v)
        else:
            attended = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.out(attended)


@pytest.mark.parametrize("kind", ["written out", "fused", "einsum", "baddbmm"])
def test_attention_of_one_head(kind: str) -> None:
    """Query and key move together, value with the output layer; positions stay."""
    torch.manual_seed(0)
    model, x = random_values(Attention(kind)), torch.randn(2, 4, 6)
    flow = Flow(model, x)
    spaces = [set(space.weights()) for space in flow.spaces if not space.stays]
    assert spaces == [{"q.weight[0]", "k.weight[0]"}, {"v.weight[0]", "out.weight[1]"}]
    assert_same_function(model, x, shuffled(flow))


class Products(nn.Module):
    """Bare matrices: on the left, on the right, and with vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(5, 8))
        self.vector, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.addmv(self.shift, self.left, x[0]).tanh() * self.vector
        return (
            torch.mv(self.right, hidden)
            + hidden.dot(self.vector)
            + torch.addmm(x[:1, :1], self.right, self.left @ x.T).sum()
        )


def test_products_with_vectors() -> None:
    torch.manual_seed(0)
    model, x = Products(), torch.randn(2, 6)
    flow = Flow(model, x)
    assert moving(flow) == {"left[0]", "right[1]"}
    assert_same_function(model, x, shuffled(flow))
