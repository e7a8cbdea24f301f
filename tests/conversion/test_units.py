"""What is fitted together, and in which order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nm import select
from lightning_nm.conversion.calibration import evaluating
from lightning_nm.conversion.units import find_units
from tests.conversion.networks import mlp


def units_of(model: nn.Module, x: Tensor, **rules: object):
    selection = select(model, "2:4", **rules)
    with evaluating(model), torch.no_grad():
        units, uncalled = find_units(model, selection, lambda: model(x))
    return [(unit.name, [w.name for w in unit.weights], len(unit.biases)) for unit in units], [w.name for w in uncalled]


class Backwards(nn.Module):
    """Calls its layers in another order than they were made in, and one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.unused, self.first = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def test_layers_in_the_order_of_execution() -> None:
    """Each a unit with its own bias."""
    units, _ = units_of(nn.Sequential(Backwards()), torch.ones(1, 8), ignore=["0.unused"])
    assert units == [("0.first", ["0.first.weight"], 0), ("0.last", ["0.last.weight"], 1)]


def test_a_layer_that_is_never_called_belongs_to_what_is_above_it() -> None:
    """Its weight may be read there."""
    units, uncalled = units_of(Backwards(), torch.ones(1, 8))
    assert units[-1] == ("the model", ["unused.weight"], 1)
    assert not uncalled


def test_nothing_above_it_is_called_either() -> None:
    """There is nothing to fit it to."""
    model = Backwards()
    selection = select(model, "2:4")
    _, uncalled = find_units(model, selection, lambda: model.last(model.first(torch.ones(1, 8))))
    assert [weight.name for weight in uncalled] == ["unused.weight"]


def test_attention_is_one_unit() -> None:
    """Also in an encoder layer in evaluation mode: its fast path would call no module."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    units, _ = units_of(layer, torch.ones(1, 3, 8))
    assert units == [
        ("self_attn", ["self_attn.in_proj_weight", "self_attn.out_proj.weight"], 2),
        ("linear1", ["linear1.weight"], 1),
        ("linear2", ["linear2.weight"], 1),
    ]


def test_layers_that_share_a_weight_are_one_unit() -> None:
    """It has to serve them all."""
    model = mlp(8, 8, 8, 8)
    model[4].weight = model[0].weight
    units, _ = units_of(model, torch.ones(1, 8))
    assert units == [("0 + 4", ["0.weight"], 2), ("2", ["2.weight"], 1)]


def test_another_models_selection_is_refused() -> None:
    """Or one from before its layers were replaced."""
    with pytest.raises(ValueError, match=r"no such parameters .*'0.weight'"):
        find_units(mlp(8, 8), select(mlp(8, 8), "2:4"), lambda: None)
