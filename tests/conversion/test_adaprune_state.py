"""What AdaPrune leaves behind: finished, broken off, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nm import select
from lightning_nm.conversion import adaprune
from tests.conversion.networks import QUICK, batches, mlp, obeys, values


def test_the_model_is_left_as_it_was_found() -> None:
    """Modes, frozen parameters, gradients, the random state: also where gradients are off."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 8)).train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    model[3].bias.grad = torch.ones(8)
    statistics, state = values(model[2]), torch.get_rng_state()
    with torch.no_grad():
        conversion = adaprune(model, select(model, "2:4"), batches((16, 8)), **QUICK)
    assert all(weight.error < weight.masked_error for weight in conversion.weights)
    assert [module.training for module in model] == [True, True, False, True]
    assert [param.requires_grad for param in model.parameters()] == [False, *[True] * 5]
    assert [param.grad is None for param in model.parameters()] == [True] * 5 + [False]
    assert torch.equal(model[3].bias.grad, torch.ones(8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(now, statistics[name]) for name, now in model[2].state_dict().items())


def test_the_seed_alone_decides() -> None:
    """Bit for bit, whatever the random state."""
    models = [mlp(16, 16, 8) for _ in range(3)]
    for state, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        torch.manual_seed(state)
        adaprune(model, select(model, "2:4"), batches((16, 16)), seed=seed, **QUICK)
    assert torch.equal(models[0][2].weight, models[1][2].weight)
    assert not torch.equal(models[0][2].weight, models[2][2].weight)


def test_a_layer_that_is_random_by_itself() -> None:
    """Also in evaluation mode: from the seed, and the random state is what it was."""

    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.1 * torch.randn_like(x))

    results = []
    for state in (1, 2):
        torch.manual_seed(0)
        model = Noisy(16, 8)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        adaprune(model, select(model, "2:4"), batches((64, 16)), **QUICK)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(model.weight)
    assert torch.equal(*results)


def test_breaking_off_leaves_finished_layers_fitted_and_the_rest_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the midst of the second layer's fit."""
    whole, model, data = mlp(16, 16, 16, 8), mlp(16, 16, 16, 8), batches((16, 16))
    dense = values(model)
    adaprune(whole, select(whole, "2:4"), data, **QUICK)
    model.train()
    model[2].weight.requires_grad_(False)
    step, steps = torch.optim.Adam.step, []

    def interrupted(self, *args):
        steps.append(step(self, *args))
        if len(steps) == 90:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", interrupted)
    selection = select(model, "2:4")
    with pytest.raises(KeyboardInterrupt):
        adaprune(model, selection, data, **QUICK)
    assert torch.equal(model[0].weight, whole[0].weight)
    for name, weight in (("2", selection.weights[1]), ("4", selection.weights[2])):
        masked = torch.where(weight.pattern.mask(dense[weight.name]), dense[weight.name], 0.0)
        assert torch.equal(weight.param, masked)
        assert torch.equal(model.get_submodule(name).bias, dense[f"{name}.bias"])
    assert all(module.training for module in model.modules())
    assert [param.requires_grad for param in model.parameters()] == [True, True, False, True, True, True]


def test_breaking_off_while_a_layer_is_recorded_leaves_sparse_weights() -> None:
    """The dense weights are in the model for that moment."""
    model, runs = mlp(16, 16, 8), []

    def call(model: nn.Module, batch: Tensor) -> None:
        runs.append(int(model[0].weight.count_nonzero()))
        if len(runs) == 2:
            raise KeyboardInterrupt
        model(batch)

    selection = select(model, "2:4")
    with pytest.raises(KeyboardInterrupt):
        adaprune(model, selection, batches((16, 16), 1), call=call, **QUICK)
    assert runs == [256, 256]
    assert obeys(selection)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"inputs": "sparse"}, "neither 'converted' nor 'dense'"),
        ({"samples": 0}, "samples=0"),
        ({"batches": []}, "no calibration batches"),
        ({"batches": [torch.ones(2, 3)]}, "shapes cannot be multiplied"),
        ({"scores": {"nix": torch.ones(1)}}, "scores of"),
    ],
)
def test_bad_input_leaves_the_model_dense(changes: dict[str, object], message: str) -> None:
    """Data that do not fit it are found before the first mask."""
    model = mlp(8, 8)
    arguments = {"batches": batches((4, 8)), "progress": False, **changes}
    with pytest.raises((ValueError, RuntimeError), match=message):
        adaprune(model, select(model, "2:4"), **arguments)
    assert int(model[0].weight.count_nonzero()) == 64
