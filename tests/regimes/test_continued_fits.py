"""Fits that go on from an earlier one: in a row, from a checkpoint, with a copied callback."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from lightning_nm import NMSparsityCallback
from tests.helpers import trainer
from tests.regimes.matrix import supported
from tests.regimes.runs import Sgd, sgd, trained
from tests.regimes.watch import assert_exactly_2_4, assert_same_weights, sparsity, steps_of, watched

# -- fits in a row -------------------------------------------------------------------------------------


@supported("Entry points", "several fits in a row")
@pytest.mark.parametrize("trainers", ["one Trainer", "a Trainer each"])
def test_fits_in_a_row_are_one_long_fit(tmp_path, trainers):
    """The same model and callback go on where they were."""
    model, callback = sgd(), sparsity()
    run = trainer(tmp_path, callback, max_epochs=1)
    run.fit(model)
    if trainers == "one Trainer":
        run.fit_loop.max_epochs = 3
        run.fit(model)
    else:
        for _ in range(2):
            trainer(tmp_path, callback, max_epochs=1).fit(model)
    assert steps_of(callback) == 18
    assert_same_weights(model, trained(3))


@supported("Entry points", "several fits in a row")
def test_another_model_starts_afresh(tmp_path):
    """A callback's second model is trained as if it were its first, and its first one stays as it was."""
    first, second, callback = sgd(), sgd(seed=1), sparsity()
    for model in (first, second):
        trainer(tmp_path, callback).fit(model)
    assert steps_of(callback) == 12
    assert_same_weights(first, trained(2))
    assert_same_weights(second, trained(2, seed=1))


@supported("Entry points", "a fit without the callback afterwards")
def test_a_later_fit_without_the_callback_is_dense(tmp_path):
    """The trained model is nobody's: it trains on like any other that starts from such weights."""
    model = sgd()
    trainer(tmp_path, sparsity(), max_epochs=1).fit(model)
    stranger = sgd()
    stranger.load_state_dict(model.state_dict())
    for each in (model, stranger):
        trainer(tmp_path, max_epochs=1).fit(each)
    assert_same_weights(model, stranger)
    assert model.net[0].weight.count_nonzero() == model.net[0].weight.numel()


# -- from a checkpoint ---------------------------------------------------------------------------------


def fit_and_keep(folder: Any, *, epochs: int, ckpt_path: str | None = None) -> Sgd:
    """Fit with a ModelCheckpoint that keeps the last epoch's file."""
    model = sgd(seed=0 if ckpt_path is None else 1)
    keep = ModelCheckpoint(folder / "kept", save_last=True)
    run = trainer(folder, sparsity(), keep, max_epochs=epochs, enable_checkpointing=True)
    with watched():
        run.fit(model, ckpt_path=ckpt_path)
    return model


@supported("Entry points", "`fit(ckpt_path=...)`, `max_epochs` extended")
@pytest.mark.parametrize("which", ["last", "its path"])
def test_a_fit_extended_from_its_checkpoint_is_one_long_fit(tmp_path, which):
    """Two epochs, then two more from the file, in a new Trainer with a new callback."""
    fit_and_keep(tmp_path, epochs=2)
    path = "last" if which == "last" else str(tmp_path / "kept" / "last.ckpt")
    assert_same_weights(fit_and_keep(tmp_path, epochs=4, ckpt_path=path), trained(4))


@supported("Entry points", "`load_from_checkpoint`")
def test_a_model_loaded_from_a_checkpoint_is_sparse(tmp_path):
    """It needs nothing of ours; trained on with the file's state it continues bit for bit."""
    fit_and_keep(tmp_path, epochs=2)
    model = Sgd.load_from_checkpoint(tmp_path / "kept" / "last.ckpt")
    assert_exactly_2_4(model)
    trainer(tmp_path, sparsity(), max_epochs=4).fit(model, ckpt_path=tmp_path / "kept" / "last.ckpt")
    assert_same_weights(model, trained(4))


@supported("Entry points", "`load_from_checkpoint`")
def test_a_loaded_model_may_start_anew(tmp_path):
    """Without the file's state its masks are the first ones of the new fit, which trains on from there."""
    fit_and_keep(tmp_path, epochs=2)
    model = Sgd.load_from_checkpoint(tmp_path / "kept" / "last.ckpt")
    loaded = copy.deepcopy(model)
    trainer(tmp_path, sparsity(), max_epochs=0).fit(model)
    assert_same_weights(model, loaded)
    with watched() as seen:
        trainer(tmp_path, sparsity()).fit(model)
    assert seen.steps == 12
    assert_exactly_2_4(model)


# -- with a copied callback ----------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda thing: pickle.loads(pickle.dumps(thing))}
either_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@supported("Entry points", "`deepcopy` and `pickle` of the callback")
@either_copy
def test_a_copy_made_before_a_fit_is_as_good(tmp_path, copied):
    """It trains as the original would have."""
    model = sgd()
    trainer(tmp_path, copied(sparsity())).fit(model)
    assert_same_weights(model, trained(2))


@supported("Entry points", "`deepcopy` and `pickle` of the callback")
@either_copy
def test_a_copy_made_after_a_fit_starts_another_models_afresh(tmp_path, copied):
    """Nothing of the fit that it remembers gets into the next model's."""
    callback, model = sparsity(), sgd(seed=1)
    trainer(tmp_path, callback).fit(sgd())
    another = copied(callback)
    trainer(tmp_path, another).fit(model)
    assert steps_of(another) == 12
    assert_same_weights(model, trained(2, seed=1))


@supported("Entry points", "`deepcopy` and `pickle` of the callback")
def test_model_and_callback_copied_together_in_mid_fit_go_on(tmp_path):
    """The copy ends where the original ends, and its life is no business of the original's."""
    model, callback = sgd(), sparsity()
    copies: list[tuple[L.LightningModule, NMSparsityCallback]] = []

    def take(run: L.Trainer, running: L.LightningModule) -> None:
        if run.current_epoch == 1:
            copies.append(copy.deepcopy((running, callback)))
            trainer(tmp_path, copies[0][1], max_epochs=1).fit(copies[0][0])

    trainer(tmp_path, callback, LambdaCallback(on_train_epoch_start=take)).fit(model)
    assert steps_of(callback) == steps_of(copies[0][1]) == 12
    for trained_model in (model, copies[0][0]):
        assert_same_weights(trained_model, trained(2))
