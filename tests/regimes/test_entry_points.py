"""The ways into a Trainer: evaluation, models and callbacks that come from elsewhere, the other package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import RandomDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_nm import NMSparsityCallback
from tests.helpers import net, trainer
from tests.regimes.matrix import refused, supported
from tests.regimes.runs import Late, sgd, trained
from tests.regimes.watch import assert_exactly_2_4, assert_same_weights, sparsity, steps_of, watched

EVALUATIONS = ("validate", "test", "predict")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint after two epochs."""
    run = trainer(tmp_path, sparsity())
    run.fit(sgd())
    run.save_checkpoint(tmp_path / "saved.ckpt")
    return tmp_path / "saved.ckpt"


# -- evaluation ----------------------------------------------------------------------------------------


@supported("Entry points", "`validate`, `test`, `predict` without `fit`")
@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_evaluation_alone_changes_nothing(tmp_path, evaluate):
    """A dense model is evaluated dense, and stays as it is."""
    model, callback = sgd(), sparsity()
    getattr(trainer(tmp_path, callback), evaluate)(model)
    assert_same_weights(model, sgd())


@supported("Entry points", "`validate`, `test`, `predict` after `fit`")
@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_evaluation_after_fit_sees_sparse_weights_and_leaves_them(tmp_path, evaluate):
    """Between two fits it changes neither weights nor hidden parts: with it or without, the second ends the same."""
    model, callback = sgd(), sparsity()
    run = trainer(tmp_path, callback, max_epochs=1)
    run.fit(model)
    with watched() as seen:
        getattr(run, evaluate)(model)
    assert seen.forwards > 0
    trainer(tmp_path, callback, max_epochs=1).fit(model)
    assert_same_weights(model, trained(2))


@supported("Entry points", "`validate`, `test`, `predict` with `ckpt_path`")
@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_a_checkpoint_is_evaluated_sparse_and_can_be_trained_on(tmp_path, saved, evaluate):
    """What is loaded to be evaluated is 2:4; a fit afterwards goes on from it, hidden parts included."""
    model, callback = sgd(seed=1), sparsity()
    with watched():
        getattr(trainer(tmp_path, callback), evaluate)(model, ckpt_path=saved)
    trainer(tmp_path, callback).fit(model)
    assert_same_weights(model, trained(4))


@supported("Entry points", "`validate`, `test`, `predict` with `ckpt_path`")
def test_a_fit_of_another_model_after_a_checkpoint_was_evaluated(tmp_path, saved):
    """The evaluated checkpoint's hidden parts are not the new model's: it starts afresh."""
    callback, model = sparsity(), sgd(seed=2)
    trainer(tmp_path, callback).test(sgd(seed=1), ckpt_path=saved)
    trainer(tmp_path, callback).fit(model)
    assert_same_weights(model, trained(2, seed=2))


# -- where data and layers come from ---------------------------------------------------------------------


@supported("Entry points", "`LightningDataModule`")
def test_a_datamodule_brings_the_data(tmp_path):
    """Where the batches come from is all the same."""

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader[Any]:
            return net().train_dataloader()

    model = sgd()
    trainer(tmp_path, sparsity()).fit(model, datamodule=Data())
    assert_same_weights(model, trained(2))


@pytest.mark.parametrize("where", ["setup", "configure_model"])
@supported("Entry points", "layers made in `setup` or `configure_model`")
def test_layers_made_late_are_trained_as_early_ones(tmp_path, where):
    """Sparse from the first forward on, and equal bit for bit to a model that had them at once."""
    model = Late(where)
    with watched():
        trainer(tmp_path, sparsity()).fit(model)
    assert_same_weights(model, trained(2))


@pytest.mark.parametrize("where", ["setup", "configure_model"])
@supported("Entry points", "layers made in `setup` or `configure_model`")
def test_layers_made_late_are_restored(tmp_path, saved, where):
    """A checkpoint meets layers that the callback's set-up has not seen."""
    model = Late(where)
    with watched():
        trainer(tmp_path, sparsity(), max_epochs=4).fit(model, ckpt_path=saved)
    assert_same_weights(model, trained(4))


# -- where the callback comes from ----------------------------------------------------------------------


@supported("Entry points", "`configure_callbacks`")
def test_a_model_may_bring_the_callback(tmp_path):
    """The one that the model returns takes the place of the Trainer's."""
    model, brought, replaced = sgd(), sparsity(), NMSparsityCallback("1:4")
    model.configure_callbacks = lambda: [brought]  # type: ignore[method-assign]
    trainer(tmp_path, replaced).fit(model)
    assert replaced.sparsifier is None
    assert_same_weights(model, trained(2))


@refused(
    "Entry points",
    "two `NMSparsityCallback`s",
    "more than one stateful callback of type `NMSparsityCallback`",
    RuntimeError,
)
def test_two_callbacks(tmp_path):
    """Lightning could not tell their states apart; `overrides` gives each layer its own pattern."""
    trainer(tmp_path, sparsity(include=["conv"]), sparsity(include=["net"]))


def test_two_callbacks_brought_by_the_model(tmp_path):
    """Past Lightning's check: their states would overwrite each other's, and on one weight their hidden parts."""
    model = sgd()
    model.configure_callbacks = lambda: [sparsity(), sparsity()]  # type: ignore[method-assign]
    with pytest.raises((RuntimeError, ValueError), match="NMSparsityCallback"):
        trainer(tmp_path).fit(model)


@supported("Entry points", "`pytorch_lightning.Trainer`")
def test_the_other_lightning_package(tmp_path):
    """`pytorch_lightning` has its own Trainer and Callback classes; ours serves there all the same."""
    import pytorch_lightning

    class Model(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(32, 8)

        def training_step(self, batch: Tensor) -> Tensor:
            return self.layer(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    callback, model = sparsity(), Model()
    run = pytorch_lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with watched() as seen:
        run.fit(model, DataLoader(RandomDataset(32, 12)))
    assert steps_of(callback) == seen.steps == 12
    assert_exactly_2_4(model)
