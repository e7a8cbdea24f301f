"""Average models beside the trained one, in real Trainer runs: what is validated and saved of them is sparse."""

from __future__ import annotations

import pickle
from contextlib import suppress
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from lightning_nm import NMSparsityCallback
from lightning_nm.patterns import NM
from lightning_nm.training import Schedule
from tests.helpers import SELECTED, Net, net, same_bits, trainer
from tests.oracles import nm_mask_by_hand
from tests.regimes.matrix import supported

PATTERN = NM(2, 4)


def ema(**kwargs: Any) -> WeightAveraging:
    return WeightAveraging(avg_fn=get_ema_avg_fn(0.8), **kwargs)


def swa() -> StochasticWeightAveraging:
    return StochasticWeightAveraging(swa_lrs=0.02, swa_epoch_start=2, annealing_epochs=1)


def sparsity(**kwargs: Any) -> NMSparsityCallback:
    return NMSparsityCallback("2:4", report=False, **kwargs)


def is_sparse(weights: Any) -> bool:
    return all(PATTERN.violations(weights[name].detach(), dim=dim) == 0 for name, dim in SELECTED.items())


class Validated(L.Callback):
    """The weights that each validation met, and that they were sparse at every batch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        weights = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}
        assert is_sparse(weights)
        self.seen.append(weights)


class Trained(L.Callback):
    """The sparse weights after every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.seen.append(pl_module.net[0].weight.detach().clone())


@supported("Averaging", "`WeightAveraging`, `EMAWeightAveraging`", "`StochasticWeightAveraging`")
@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("averaging", [ema, swa])
def test_what_is_validated_and_saved_is_sparse(tmp_path, averaging, ours_first):
    """Promise 1 for the averages: every validation, every checkpoint and the end, in either order."""
    validated, keep = Validated(), ModelCheckpoint(tmp_path / "steps", every_n_train_steps=1, save_top_k=-1)
    model, pair = net(), [sparsity(), averaging()]
    callbacks = [*(pair if ours_first else reversed(pair)), validated, keep]
    trainer(tmp_path, *callbacks, max_epochs=4, val_check_interval=2, enable_checkpointing=True).fit(model)
    assert len(validated.seen) > 12
    assert is_sparse(model.state_dict())
    files = list((tmp_path / "steps").glob("*.ckpt"))
    assert len(files) >= 24
    for file in files:
        checkpoint = torch.load(file, weights_only=False)  # SWALR saves functions
        assert is_sparse(checkpoint["state_dict"])
        assert is_sparse(checkpoint.get("current_model_state", checkpoint["state_dict"]))


def test_the_average_is_the_projected_average_of_the_trained_weights(tmp_path):
    """What projections leave out is not lost to the average: it is the EMA of all sparse weights, projected once."""
    trained, validated = Trained(), Validated()
    trainer(tmp_path, sparsity(), ema(), trained, validated, max_epochs=3).fit(net())
    average = trained.seen[0].clone()
    for weight in trained.seen[1:]:
        average = 0.8 * average + 0.2 * weight
    expected = torch.where(nm_mask_by_hand(average, 2, 4), average, 0.0)
    torch.testing.assert_close(validated.seen[-1]["net.0.weight"], expected)
    assert not torch.equal(expected, average)


def test_averaging_does_not_change_what_is_trained(tmp_path):
    """Swapped out again, the trained weights and their hidden parts are those of a run without averaging."""
    alone, beside = Trained(), Trained()
    trainer(tmp_path, sparsity(), alone, max_epochs=3).fit(net())
    trainer(tmp_path, sparsity(), ema(), beside, max_epochs=3, val_check_interval=2).fit(net())
    for mine, theirs in zip(beside.seen, alone.seen, strict=True):
        assert same_bits(mine, theirs)


@supported("Averaging", "resumed averages")
@pytest.mark.parametrize("averaging", [ema, swa])
def test_resumed_averages_go_on_bit_for_bit(tmp_path, averaging):
    """Promise 2 for the averages: what they left out is in the checkpoint too."""

    class SameBatch(Net):
        def train_dataloader(self) -> DataLoader[Any]:
            x, y = next(iter(super().train_dataloader()))
            return DataLoader(TensorDataset(x.repeat(6, 1, 1, 1), y.repeat(6, 1)), batch_size=8)

    def run(folder: str, *others: L.Callback, **kwargs: Any) -> nn.Module:
        torch.manual_seed(0)
        model = SameBatch()
        keep = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        run = trainer(tmp_path, sparsity(), averaging(), keep, *others, max_epochs=5, enable_checkpointing=True)
        with suppress(Interrupted):
            run.fit(model, **kwargs)
        return model

    whole = run("whole")
    resumed = run("resumed", ckpt_path=tmp_path / "whole/epoch=2.ckpt", weights_only=False)
    # and in one that is saved after an exception, when we follow the averages no more
    run("broken", OnExceptionCheckpoint(tmp_path / "broken"), Breaks())
    rescued = run("rescued", ckpt_path=tmp_path / "broken/on_exception.ckpt", weights_only=False)
    for other in (resumed, rescued):
        for (name, mine), theirs in zip(other.named_parameters(), whole.parameters()):
            assert same_bits(mine, theirs), name


class Interrupted(RuntimeError):
    pass


class Breaks(L.Callback):
    """Between two steps of the fourth epoch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 3 and batch_idx == 2:
            raise Interrupted


def test_a_callback_that_follows_averages_can_be_copied(tmp_path):
    """A pickled one follows none, whatever Lightning's averages hold."""
    copies = []

    class Copy(L.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            copies.append(pickle.loads(pickle.dumps(callback)))

    callback = sparsity()
    trainer(tmp_path, callback, ema(), Copy(), max_epochs=1).fit(net())
    assert copies[-1].sparsifier.steps == 6


def test_averages_of_the_other_lightning_package(tmp_path):
    """`pytorch_lightning` has averaging callbacks of its own."""
    import pytorch_lightning as pl

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 8)

        def training_step(self, batch: list[Tensor]) -> Tensor:
            return (self.layer(batch[0]) - 1).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.5)

    average = pl.callbacks.WeightAveraging(avg_fn=get_ema_avg_fn(0.8))
    keep = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    run = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[average, sparsity(), keep]
    )
    run.fit(Model(), DataLoader(TensorDataset(torch.randn(32, 32)), batch_size=4))
    [*files] = tmp_path.glob("*.ckpt")
    assert len(files) == 2
    for file in files:
        assert PATTERN.violations(torch.load(file, weights_only=True)["state_dict"]["layer.weight"]) == 0


def test_the_core_follows_an_average_that_was_taken_over(tmp_path):
    """After the fit the hidden parts are the averaged weights' own: a loop that goes on starts from these."""
    model, callback = net(), sparsity()
    trainer(tmp_path, callback, ema()).fit(model)
    before = model.net[0].weight.detach().clone()
    assert callback.sparsifier is not None
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with callback.sparsifier:
        model.training_step(next(iter(model.train_dataloader()))).backward()
        optimizer.step()
    assert torch.equal(model.net[0].weight, before)


def test_averages_follow_the_schedule(tmp_path):
    """Dense while the weights are dense on purpose, sparse as soon as they are sparse."""
    dense: list[bool] = []

    class Look(L.Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if not trainer.sanity_checking:
                dense.append(not is_sparse(pl_module.state_dict()))

    schedule = Schedule(start=5, dense_from=15)
    trainer(tmp_path, ema(), sparsity(schedule=schedule), Look(), max_epochs=3, limit_val_batches=1).fit(net())
    assert dense == [False, False, True]
    dense.clear()
    averaging = ema()
    averaging.should_update = lambda step_idx=None, epoch_idx=None: False
    trainer(tmp_path, averaging, sparsity(schedule=schedule), Look(), val_check_interval=2, limit_val_batches=1).fit(
        net()
    )
    assert dense == [True, True, False, False, False, False]


def test_nothing_of_ours_stays_on_the_other_callbacks(tmp_path):
    """Used without us afterwards, they average as Lightning made them."""
    averaging, swa_callback = ema(), swa()
    for callback in (averaging, swa_callback):
        trainer(tmp_path, sparsity(), callback, max_epochs=3).fit(net())
    assert "update_parameters" not in vars(averaging._average_model)
    assert "update_parameters" not in vars(swa_callback)


def test_training_on_after_the_average_was_taken_over(tmp_path):
    """Saved after the fit, the averaged weights and our state belong together: a resumed fit starts from them."""
    model, callback = net(), sparsity()
    run = trainer(tmp_path, callback, ema())
    run.fit(model)
    run.save_checkpoint(tmp_path / "end.ckpt")
    resumed = net()
    trainer(tmp_path, sparsity(), ema(), max_epochs=3).fit(resumed, ckpt_path=tmp_path / "end.ckpt")
    assert is_sparse(resumed.state_dict())
