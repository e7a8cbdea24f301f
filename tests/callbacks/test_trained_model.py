"""What is kept beside a model, through models that change and checkpoints that come at any time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_nm.callbacks.trained_model import TrainedModel
from lightning_nm.training import SRSTE, Schedule, select
from tests.helpers import same_bits


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


def trained(model: nn.Module, steps: int = 2) -> TrainedModel:
    kept = TrainedModel(partial(select, pattern="2:4"), SRSTE(), Schedule())
    kept.meet(model)
    kept.follow(model, final=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).sum().backward()
        optimizer.step()
    kept.leave()
    return kept


def test_another_model_begins_anew():
    """The same model keeps what is kept beside it."""
    model = mlp()
    kept = trained(model)
    core = kept.core
    kept.meet(model)
    assert kept.core is core
    kept.meet(mlp(1))
    assert kept.core is not core
    assert not kept.core.weights


def test_a_state_is_passed_on_until_it_is_joined():
    """Saved again before the model is restored, a checkpoint's state is what it was."""
    kept = trained(mlp())
    state = kept.state_dict()
    fresh = TrainedModel(partial(select, pattern="2:4"), SRSTE(), Schedule())
    assert fresh.state_dict() == {}
    fresh.load_state_dict(state)
    assert fresh.state_dict() is state


def test_a_state_restored_last_serves_the_next_fit():
    """As a tuner or an evaluation leaves it: the hidden parts are there, of the model that was restored."""
    model = mlp()
    kept = trained(model)
    other, again = mlp(1), TrainedModel(partial(select, pattern="2:4"), SRSTE(), Schedule())
    other.load_state_dict(model.state_dict())
    again.load_state_dict(kept.state_dict())
    again.finish(other)
    assert again.core.steps == 2
    for mine, theirs in zip(again.core.weights, kept.core.weights, strict=True):
        assert mine.hidden is not None
        assert theirs.hidden is not None
        assert same_bits(mine.hidden, theirs.hidden)
    again.load_state_dict({"weights": {"other": {}}})
    again.finish(other)
    assert again.core.steps == 2


def test_weights_that_are_lost_are_said():
    """Promise 5 in mid-training: nothing becomes dense without a line."""
    model = mlp()
    kept = trained(model)
    nn.utils.parametrizations.weight_norm(model[2])
    with pytest.warns(UserWarning, match=r"no longer selected, and dense from here on: 2\.weight"):
        kept.follow(model, final=True)
