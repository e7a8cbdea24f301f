"""Units of all layers compete."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_nm import NMSparsityCallback, select
from lightning_nm.conversion import global_budget, one_shot
from lightning_nm.patterns import parse
from tests.helpers import net, trainer


def two_layers() -> nn.Sequential:
    """The second layer's weights are ten times larger, and it has other shapes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 32))
    with torch.no_grad():
        model[0].weight.normal_()
        model[2].weight.normal_(std=10.0)
    return model


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.6])
def test_the_smallest_weights_of_all_go(sparsity: float) -> None:
    """Unstructured: exactly the smallest of the whole model."""
    model = two_layers()
    weights = [model[0].weight, model[2].weight]
    every = torch.cat([w.detach().abs().flatten() for w in weights])
    going = int(sparsity * len(every))
    least = every.sort().values[going - 1] if going else -1.0
    pattern = f"unstructured@{sparsity}"
    expected = [w.detach().abs() > least for w in weights]
    one_shot(select(model, pattern, overrides=global_budget(model, pattern)))
    assert all(torch.equal(w.detach() != 0, mask) for w, mask in zip(weights, expected))


@pytest.mark.parametrize("pattern", ["1x4@0.5", "filter@0.5", "unstructured@0.5"])
def test_the_share_is_that_of_all_weights(pattern: str) -> None:
    """Up to one unit, however large the units of a layer are; the layer of small weights gives more."""
    model = two_layers()
    one_shot(select(model, pattern, overrides=global_budget(model, pattern)))
    total = sum(layer.weight.numel() for layer in (model[0], model[2]))
    zeros = sum(int((layer.weight == 0).sum()) for layer in (model[0], model[2]))
    assert total / 2 - 72 <= zeros <= total / 2  # a filter of the convolution has 72 weights
    assert (model[0].weight == 0).float().mean() > (model[2].weight == 0).float().mean()


def test_no_layer_goes_altogether() -> None:
    """One block stays, though all of it is smaller than anything elsewhere."""
    model = two_layers()
    chosen = global_budget(model, "1x4@0.9")
    one_shot(select(model, "1x4@0.9", overrides=chosen))
    assert int((model[0].weight != 0).sum()) == 4 * 9


def test_the_callback_takes_it(tmp_path) -> None:
    """As overrides; layers that are ignored stay dense."""
    model = net()
    budgets = global_budget(model, "1x4@0.5", ignore=["net.2"])
    callback = NMSparsityCallback("1x4@0.5", method="frozen", ignore=["net.2"], overrides=budgets, report=False)
    trainer(tmp_path, callback).fit(model)
    assert set(budgets) == {"conv.weight", "net.0.weight"}
    for name, pattern in budgets.items():
        assert pattern.violations(model.get_parameter(name)) == 0
    assert model.net[2].weight.all()


def test_groups_have_budgets_of_their_own() -> None:
    """N:M cannot be shared among layers."""
    with pytest.raises(ValueError, match="2:4 has a budget for every group"):
        global_budget(two_layers(), parse("2:4"))  # type: ignore[arg-type]


def test_what_is_no_number() -> None:
    """By name and shape."""
    model = two_layers()
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"2.weight \[32, 16\] holds NaN"):
        global_budget(model, "1x4@0.5")
