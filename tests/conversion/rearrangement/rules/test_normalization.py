"""Normalisations: which channels they let move."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm.conversion.rearrangement.flow import TOLERANCE, Flow
from tests.conversion.rearrangement.networks import random_values
from tests.conversion.rearrangement.test_flow import assert_same_function, moving, shuffled


class Last(nn.Module):
    """A normalisation over the last dimension, applied to channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


# layer, sizes of the spaces of its channels
NORMS = {
    "batch": (lambda: nn.BatchNorm2d(8), [8]),
    "batch, no affine": (lambda: nn.BatchNorm2d(8, affine=False), [8]),
    "batch, no statistics": (lambda: nn.BatchNorm2d(8, track_running_stats=False), [8]),
    "instance": (lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), [8]),
    "instance, no affine": (lambda: nn.InstanceNorm2d(8), [8]),
    "group": (lambda: nn.GroupNorm(2, 8), [4, 4]),
    "group, no affine": (lambda: nn.GroupNorm(4, 8, affine=False), [2, 2, 2, 2]),
    "group of all": (lambda: nn.GroupNorm(1, 8), [8]),
    "group of one": (lambda: nn.GroupNorm(8, 8), []),
    "layer": (lambda: Last(nn.LayerNorm(8)), [8]),
    "layer, no bias": (lambda: Last(nn.LayerNorm(8, bias=False)), [8]),
    "layer, over places": (lambda: nn.LayerNorm((5, 5)), [8]),
    "layer, over everything": (lambda: nn.LayerNorm((8, 5, 5)), [8]),
    "rms": (lambda: Last(nn.RMSNorm(8)), [8]),
    "local response": (lambda: nn.LocalResponseNorm(3), []),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    """Channels, affine parameters and statistics move as one, within their groups."""
    make, sizes = NORMS[name]
    torch.manual_seed(0)
    model, x = random_values(nn.Sequential(nn.Conv2d(3, 8, 1), make(), nn.Conv2d(8, 4, 1))), torch.randn(2, 3, 5, 5)
    flow = Flow(model, x)
    assert [space.size for space in flow.spaces if not space.stays] == sizes
    assert moving(flow) >= ({"0.weight[0]", "2.weight[1]"} if sizes else set())
    assert flow.difference(shuffled(flow)) <= TOLERANCE
    assert_same_function(model, x, shuffled(flow))


class Standardized(nn.Module):
    """Weight standardisation: what a parameter holds is followed through operations on it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = self.a.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.flatten(1).std(1).view(-1, 1, 1, 1)
        return self.b(F.conv2d(x, w, self.a.bias))


def test_standardised_weights() -> None:
    torch.manual_seed(0)
    model, x = Standardized(), torch.randn(2, 3, 5, 5)
    flow = Flow(model, x)
    assert moving(flow) == {"a.weight[0]", "b.weight[1]"}
    assert_same_function(model, x, shuffled(flow))
