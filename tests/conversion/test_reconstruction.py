"""One layer fitted, against the best that there is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nm import select
from lightning_nm.conversion import adaprune
from tests.conversion.networks import batches


def least_squares_error(layer: nn.Linear, x: Tensor, mask: Tensor) -> float:
    """The smallest error that any weights under ``mask`` and any bias can have: normal equations in float64."""
    x, weight, bias = x.double(), layer.weight.detach().double(), layer.bias.detach().double()
    y = x @ weight.t() + bias
    ones, squares = torch.ones(len(x), 1, dtype=torch.float64), 0.0
    for row in range(len(weight)):
        inputs = torch.cat([x[:, mask[row]], ones], 1)
        solution = torch.linalg.lstsq(inputs, y[:, row : row + 1]).solution
        squares += float((inputs @ solution - y[:, row : row + 1]).square().sum())
    return squares / float(y.square().sum())


@pytest.mark.parametrize("pattern", ["1:4", "2:4", "2:4T"])
def test_a_linear_layer_reaches_its_least_squares_solution(pattern: str) -> None:
    """With steps enough; and no result can be below it."""
    torch.manual_seed(0)
    layer, (x,) = nn.Linear(16, 8), batches((256, 16), 1)
    selection = select(layer, pattern)
    best = least_squares_error(layer, x, selection.weights[0].pattern.mask(layer.weight.detach()))
    (weight,) = adaprune(layer, selection, [x], iterations=1500, lr=3e-3, progress=False).weights
    assert weight.masked_error > 1.5 * best
    assert best * (1 - 1e-4) < weight.error < best * 1.01


def test_small_updates_of_half_precision_weights_add_up() -> None:
    """Float32 masters: steps below bf16's last bit would be lost, one by one."""
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8).bfloat16(), batches((256, 16), 1, torch.bfloat16)
    exact = nn.Linear(16, 8)
    exact.load_state_dict(layer.state_dict())
    settings = {"iterations": 400, "lr": 3e-4, "progress": False}
    (half,) = adaprune(layer, select(layer, "2:4"), x, **settings).weights
    (full,) = adaprune(exact, select(exact, "2:4"), [batch.float() for batch in x], **settings).weights
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert half.error == pytest.approx(full.error, rel=0.1)
    assert half.error < 0.7 * half.masked_error


def test_half_precision_gradients_do_not_vanish() -> None:
    """Outputs of 1e-3 in float16: their mean squared error has gradients below its smallest number."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 8)
    with torch.no_grad():
        layer.weight.mul_(1e-3)
        layer.bias.mul_(1e-3)
    layer.half()
    x = batches((8192, 16), 1, torch.float16)
    (weight,) = adaprune(layer, select(layer, "2:4"), x, iterations=200, lr=2e-6, bias_lr=2e-6, progress=False).weights
    assert weight.error < 0.7 * weight.masked_error


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0])
def test_outputs_that_cannot_be_fitted_leave_the_layer_masked(value: float) -> None:
    """NaN from a row of padding, or nothing at all: the report says so."""

    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(super().forward(x), value)

    layer = Odd(8, 8)
    before = layer.weight.detach().clone()
    selection = select(layer, "2:4")
    (weight,) = adaprune(layer, selection, [torch.ones(2, 8)], iterations=2, progress=False).weights
    assert weight.remark == "its dense output is zero, infinite or no floating-point tensor: masked only"
    assert (weight.masked_error, weight.error) == (None, None)
    assert torch.equal(layer.weight, torch.where(selection.weights[0].pattern.mask(before), before, 0.0))


def test_a_fit_that_makes_it_worse_is_not_kept() -> None:
    """A learning rate far too high: the masked weights and the bias are back."""
    layer, x = nn.Linear(16, 8), batches((64, 16), 1)
    dense, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    selection = select(layer, "2:4")
    (weight,) = adaprune(layer, selection, x, iterations=3, lr=100.0, progress=False).weights
    assert weight.remark == "reconstruction did not lower the error: masked only"
    assert weight.error == weight.masked_error
    assert torch.equal(layer.weight, torch.where(selection.weights[0].pattern.mask(dense), dense, 0.0))
    assert torch.equal(layer.bias, bias)
