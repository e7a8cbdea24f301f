"""Learning-rate and batch-size finders, as callbacks and by `Tuner`: they train a while and put everything back."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LambdaCallback, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch import Tensor
from torch.utils.data import DataLoader

from tests.helpers import Net, net, same_bits, trainer
from tests.regimes.matrix import supported
from tests.regimes.runs import Late
from tests.regimes.watch import assert_same_weights, assert_whole, either_order, ordered, sparsity, steps_of, watched

SEARCHED = 20  # steps; Lightning suggests nothing from fewer
SEARCH: dict[str, Any] = {"min_lr": 1e-3, "max_lr": 0.1, "early_stop_threshold": None}
EPOCHS = 4  # of 6 steps: the search ends with them


def finder() -> LearningRateFinder:
    return LearningRateFinder(**SEARCH, num_training_steps=SEARCHED)


@supported("Callbacks", "`LearningRateFinder`")
@either_order
def test_after_the_learning_rate_finder_training_starts_afresh(tmp_path, first):
    """What it trains is sparse; the fit after it is, bit for bit, one with that learning rate and no finder."""
    model, callback = net(), sparsity()
    with watched() as seen:
        trainer(tmp_path, *ordered(first, callback, finder()), max_epochs=EPOCHS).fit(model)
    assert seen.steps == SEARCHED + 6 * EPOCHS
    assert steps_of(callback) == 6 * EPOCHS
    assert model.lr != net().lr
    alone, fresh = net(lr=model.lr), sparsity()
    trainer(tmp_path, fresh, max_epochs=EPOCHS).fit(alone)
    assert_same_weights(model, alone)
    assert callback.topology.history == fresh.topology.history


@supported("Callbacks", "`LearningRateFinder`")
@pytest.mark.parametrize("where", ["setup", "configure_model"])
def test_the_learning_rate_finder_meets_layers_made_late_sparse(tmp_path, where):
    """It runs before our on_fit_start, where we look for such layers."""
    with watched():
        trainer(tmp_path, sparsity(), finder(), max_epochs=EPOCHS).fit(Late(where))


@supported("Callbacks", "`LearningRateFinder`")
def test_the_learning_rate_finder_in_a_resumed_fit_gives_the_hidden_parts_back(tmp_path):
    """It saves, trains and restores before our on_fit_start; training then goes on from the checkpoint's own."""
    run, file = trainer(tmp_path, sparsity()), tmp_path / "resumed.ckpt"
    run.fit(net())
    run.save_checkpoint(file)
    hidden: dict[str, Tensor] = {}

    def look(*_: Any) -> None:
        hidden.update({w.name: w.hidden.clone() for w in callback.sparsifier.weights})

    callback = sparsity()
    watch = LambdaCallback(on_train_start=look)
    trainer(tmp_path, callback, finder(), watch, max_epochs=EPOCHS).fit(net(seed=1), ckpt_path=file)
    for name, weight in torch.load(file, weights_only=True)["callbacks"]["NMSparsityCallback"]["weights"].items():
        assert same_bits(hidden[name], weight["hidden"]), name


class FindsInMidTraining(LearningRateFinder):
    def on_fit_start(self, *_: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.lr_find(trainer, pl_module)


@supported("Callbacks", "`LearningRateFinder`")
@either_order
def test_a_learning_rate_found_in_mid_training(tmp_path, first):
    """Called between epochs it gives everything back: the run goes on as one that only sets the rate."""
    model, callback = net(), sparsity()
    find = FindsInMidTraining(**SEARCH, num_training_steps=SEARCHED)
    with watched():
        trainer(tmp_path, *ordered(first, callback, find), max_epochs=EPOCHS).fit(model)

    def set_rate(run: L.Trainer, _: Any) -> None:
        if run.current_epoch == 1:
            run.optimizers[0].param_groups[0]["lr"] = model.lr

    alone, fresh = net(), sparsity()
    trainer(tmp_path, fresh, LambdaCallback(on_train_epoch_start=set_rate), max_epochs=EPOCHS).fit(alone)
    assert_same_weights(model, alone)
    assert callback.topology.history == fresh.topology.history


class Sized(Net):
    batch_size = 2

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(super().train_dataloader().dataset, self.batch_size)


def sized(batch_size: int = 2) -> Sized:
    torch.manual_seed(0)
    model = Sized()
    model.batch_size = batch_size
    return model


@supported("Callbacks", "`BatchSizeFinder`")
@either_order
def test_after_the_batch_size_finder_training_starts_afresh(tmp_path, first):
    """What it trains is sparse; the fit after it is, bit for bit, one with that batch size and no finder."""
    model, callback = sized(), sparsity()
    find = BatchSizeFinder(max_val=8, steps_per_trial=1)
    with watched():
        trainer(tmp_path, *ordered(first, callback, find), max_epochs=EPOCHS).fit(model)
    assert model.batch_size == 8
    alone, fresh = sized(8), sparsity()
    trainer(tmp_path, fresh, max_epochs=EPOCHS).fit(alone)
    assert_same_weights(model, alone)
    assert callback.topology.history == fresh.topology.history


# -- by Tuner ------------------------------------------------------------------------------------------


def found(run: L.Trainer, model: Net) -> None:
    """Find a learning rate; sparse at every forward."""
    with watched() as seen:
        Tuner(run).lr_find(model, num_training=SEARCHED, **SEARCH)
    assert seen.steps == SEARCHED


@supported("Entry points", "`Tuner.lr_find`")
@pytest.mark.parametrize("times", [1, 2])
def test_a_fit_after_lr_find_starts_afresh(tmp_path, times):
    """However often it was called, the fit is, bit for bit, one with the found learning rate."""
    model, callback = net(), sparsity()
    run = trainer(tmp_path, callback, max_epochs=EPOCHS)
    for _ in range(times):
        found(run, model)
    run.fit(model)
    alone, fresh = net(lr=model.lr), sparsity()
    trainer(tmp_path, fresh, max_epochs=EPOCHS).fit(alone)
    assert_same_weights(model, alone)
    assert steps_of(callback) == 6 * EPOCHS
    assert callback.topology.history == fresh.topology.history


@supported("Entry points", "`Tuner.lr_find`")
def test_another_model_after_lr_find_starts_afresh(tmp_path):
    """Find the rate with one model, build it anew with that rate, fit: nothing of the first one's state is met."""
    tried, model = net(seed=1), net()
    run = trainer(tmp_path, sparsity(), max_epochs=EPOCHS)
    found(run, tried)
    run.fit(model)
    alone = net()
    trainer(tmp_path, sparsity(), max_epochs=EPOCHS).fit(alone)
    assert_same_weights(model, alone)


@supported("Entry points", "`Tuner.lr_find`")
def test_a_checkpoint_saved_after_lr_find_is_whole(tmp_path):
    """The model is back at its start, hidden parts included: so is what is saved then."""
    callback = sparsity()
    run = trainer(tmp_path, callback, max_epochs=EPOCHS)
    found(run, net())
    run.save_checkpoint(tmp_path / "start.ckpt")
    assert_whole(tmp_path / "start.ckpt")


@supported("Entry points", "`Tuner.scale_batch_size`")
def test_a_fit_after_scale_batch_size_starts_afresh(tmp_path):
    """What it trains is sparse; the fit after it is, bit for bit, one with that batch size."""
    model, callback = sized(), sparsity()
    run = trainer(tmp_path, callback, max_epochs=EPOCHS)
    with watched():
        Tuner(run).scale_batch_size(model, max_val=8, steps_per_trial=1)
    run.fit(model)
    assert model.batch_size == 8
    alone, fresh = sized(8), sparsity()
    trainer(tmp_path, fresh, max_epochs=EPOCHS).fit(alone)
    assert_same_weights(model, alone)
    assert callback.topology.history == fresh.topology.history
