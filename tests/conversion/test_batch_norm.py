"""Statistics of the converted network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nm.conversion import reestimate_batch_norm
from tests.conversion.networks import batches, values

DATA = batches((32, 8), 4)


def network(**norm: object) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4), nn.BatchNorm1d(4, **norm))


@torch.no_grad()
def test_statistics_are_those_of_the_data() -> None:
    """The mean over the batches of their means and unbiased variances, with dropout off."""
    model = network(momentum=0.3)
    assert reestimate_batch_norm(model, DATA) == 1
    outputs = [model[1](batch) for batch in DATA]
    torch.testing.assert_close(model[2].running_mean, torch.stack([out.mean(0) for out in outputs]).mean(0))
    torch.testing.assert_close(model[2].running_var, torch.stack([out.var(0) for out in outputs]).mean(0))


def test_modes_and_momentum_are_restored() -> None:
    """In training or not, as it was, module by module."""
    model = network(momentum=0.3).train()
    model[0].eval()
    reestimate_batch_norm(model, DATA)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert model[2].momentum == 0.3


def test_models_without_statistics_are_left_alone() -> None:
    """Not even run."""
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.LayerNorm(4))

    def call(model: nn.Module, batch: Tensor) -> None:
        raise AssertionError

    assert reestimate_batch_norm(model, DATA, call=call) == 0


def test_a_batch_norm_that_is_not_called_keeps_its_statistics() -> None:
    """An auxiliary head, for example."""
    model = network()
    model.unused = nn.BatchNorm1d(4)
    model.unused.running_mean.fill_(3.0)
    assert reestimate_batch_norm(model, DATA, call=lambda model, batch: model[2](model[1](batch))) == 1
    assert (model.unused.running_mean == 3.0).all()


def test_a_failure_leaves_the_old_statistics() -> None:
    """A last batch of one sample has no variance: torch says so, and nothing is lost."""
    model = network()
    reestimate_batch_norm(model, DATA)
    before = values(model)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        reestimate_batch_norm(model, [*batches((32, 8), 1), torch.ones(1, 8)])
    assert all(torch.equal(now, before[name]) for name, now in model.state_dict().items())


def test_no_data_is_an_error() -> None:
    """Statistics of nothing would be zeros."""
    model = network()
    with pytest.raises(ValueError, match="no calibration batches"):
        reestimate_batch_norm(model, [])
