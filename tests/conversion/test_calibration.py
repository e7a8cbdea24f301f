"""How batches are chosen and given to a model."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_nm.conversion.calibration import Calibration, call_for, evaluating


class Plain(nn.Module):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.given: list[Any] = []

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self.given.append(args or kwargs)


class Validating(L.LightningModule, Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.given.append(("validated", batch, batch_idx))


class Short(L.LightningModule, Plain):
    def validation_step(self, batch: Any) -> None:
        self.given.append(("validated", batch))


class Predicting(L.LightningModule, Plain):
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.given.append(("predicted", batch, batch_idx, dataloader_idx))


class Neither(L.LightningModule, Plain):
    pass


X, Y = torch.ones(3, 2), torch.zeros(3)


@pytest.mark.parametrize(
    ("kind", "batch", "given"),
    [
        (Plain, X, (X,)),
        (Plain, [X, Y], (X,)),
        (Plain, (X, Y), (X,)),
        (Plain, {"x": X}, {"x": X}),
        (Neither, [X, Y], (X,)),
        (Validating, "batch", ("validated", "batch", 0)),
        (Short, "batch", ("validated", "batch")),
        (Predicting, "batch", ("predicted", "batch", 0, 0)),
    ],
)
def test_the_batch_is_given_as_the_model_expects_it(kind: type[Plain], batch: Any, given: Any) -> None:
    """A LightningModule's own step, or the forward pass with the inputs among the batch."""
    model = kind()
    call_for(model)(model, batch)
    assert model.given == [given]


@pytest.mark.filterwarnings("error")
def test_logging_without_a_trainer_is_silent() -> None:
    """The step's numbers are not wanted here."""

    class Logging(Validating):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", batch)
            super().validation_step(batch, batch_idx)

    model = Logging()
    Calibration(model, [1, 2], None, None, 0).run()
    assert len(model.given) == 2


def test_a_step_that_needs_a_trainer_is_told() -> None:
    """With the way out."""

    class Needy(L.LightningModule):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            assert self.trainer.callback_metrics

    with pytest.raises(ValueError, match=r"Needy.validation_step needs a Trainer.*call=lambda"):
        Calibration(Needy(), [1], None, None, 0).run()


def test_batches_go_to_the_models_device() -> None:
    """Every tensor in any nesting; what is no tensor stays."""
    model, seen = nn.Linear(2, 2, device="meta"), []
    batch = {"a": [X, (Y, "text")], "n": 3}
    Calibration(model, [batch], lambda model, batch: seen.append(batch), None, 0).run()
    assert seen[0]["a"][0].device.type == seen[0]["a"][1][0].device.type == "meta"
    assert (seen[0]["a"][1][1], seen[0]["n"]) == ("text", 3)


def test_a_step_may_write_into_its_batch() -> None:
    """The next run gets it as it came."""
    seen: list[Tensor] = []

    def call(model: nn.Module, batch: dict[str, Tensor]) -> None:
        seen.append(batch.pop("x").mul_(2).clone())

    calibration = Calibration(Plain(), [{"x": torch.ones(2)}], call, None, 0)
    calibration.run()
    calibration.run()
    assert torch.equal(*seen)


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (4, 1), (5, 2), (100, 5), (None, 5)])
def test_samples_limit_the_batches(samples: int | None, count: int) -> None:
    """The batch that completes them is the last."""
    loader = DataLoader(TensorDataset(torch.ones(20, 2)), batch_size=4)
    assert len(Calibration(Plain(), loader, None, samples, 0).batches) == count


def test_no_batches_or_samples_is_an_error() -> None:
    """An empty loader, a used-up generator."""
    with pytest.raises(ValueError, match="there are no calibration batches"):
        Calibration(Plain(), iter(()), None, None, 0)
    with pytest.raises(ValueError, match="samples=0"):
        Calibration(Plain(), [X], None, 0, 0)


def test_every_run_is_the_same_and_leaves_the_random_state() -> None:
    """A shuffled loader is read once; random numbers depend on the seed alone."""
    model = Plain()

    def runs(seed: int) -> list[list[Tensor]]:
        loader = DataLoader(TensorDataset(torch.arange(8.0)), shuffle=True)
        drawn: list[Tensor] = []

        def call(model: nn.Module, batch: list[Tensor]) -> None:
            drawn.append(batch[0] + torch.rand(1))

        calibration = Calibration(model, loader, call, None, seed)
        calibration.run()
        calibration.run()
        return [drawn[:8], drawn[8:]]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = runs(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert first[0] == first[1] == runs(0)[0] != runs(1)[0]


def test_modes_and_the_fast_path_are_restored_after_an_error() -> None:
    """Module by module."""
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[0].eval()

    def fails() -> None:
        assert not any(module.training for module in model.modules())
        assert not torch.backends.mha.get_fastpath_enabled()
        raise KeyError

    with pytest.raises(KeyError), evaluating(model):
        fails()
    assert [module.training for module in model.modules()] == [True, False, True]
    assert torch.backends.mha.get_fastpath_enabled()


def test_modules_inside_a_compiled_model_are_called() -> None:
    """A graph compiled before would pass by their hooks."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    called: list[nn.Module] = []
    model[0].register_forward_hook(lambda module, args, output: called.append(module))
    with evaluating(compiled):
        compiled(X)
    assert called == [model[0]]
