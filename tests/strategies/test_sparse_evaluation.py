"""Validation, test and predict on sparse kernels leave no trace: weights, checkpoints and metrics are as without."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from lightning_nm.sparse.held import HeldWeight
from lightning_nm.strategies import NMSparseStrategy, SparseEvaluation
from tests.helpers import Net, trainer
from tests.regimes.matrix import supported
from tests.regimes.runs import sgd
from tests.strategies.runs import (
    NAMES,
    Uneven,
    Watched,
    assert_plain,
    assert_same_weights,
    fitted,
    metrics,
    on_cpu_kernels,
    sparsity,
    watched,
)

CPU = {name: {"cpu"} for name in NAMES}


@supported("Sparse evaluation", "`nm_sparse`: `fit` trains what it does without, bit for bit")
@pytest.mark.parametrize("strategy", ["nm_sparse", on_cpu_kernels])
def test_fit_trains_the_same_network(tmp_path, strategy) -> None:
    """The trajectory is bit for bit that of ``strategy="auto"``; validation metrics agree to rounding."""
    mine, theirs = watched(), watched()
    run = fitted(tmp_path, mine, strategy=strategy if isinstance(strategy, str) else strategy())
    dense = fitted(tmp_path, theirs)
    assert_same_weights(mine, theirs)
    assert metrics(run) == pytest.approx(metrics(dense), rel=1e-5)
    assert mine.held[0] == NAMES
    assert_plain(mine)


@supported("Sparse evaluation", "`validate`, `test`, `predict`, mixed with `fit`, again and again")
def test_every_entry_point_mixed(tmp_path) -> None:
    """Each gives what the dense model gives at that moment, and trains on as if nothing had been."""
    model, twin = watched(), watched()
    runs = [fitted(tmp_path, m, strategy=s, max_epochs=1) for m, s in ((model, on_cpu_kernels()), (twin, "auto"))]
    for epochs in (2, 3):
        for evaluate in ("validate", "test", "validate"):
            mine, theirs = (getattr(run, evaluate)(m, verbose=False) for run, m in zip(runs, (model, twin)))
            assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
            assert model.seen[-1] == CPU
        mine, theirs = (torch.cat(run.predict(m)) for run, m in zip(runs, (model, twin)))
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        assert model.seen[-1] == CPU
        for run, m in zip(runs, (model, twin)):
            run.fit_loop.max_epochs = epochs
            run.fit(m)
        assert_same_weights(model, twin)
        assert_plain(model)


@supported("Sparse evaluation", "several loaders, uneven and partial batches")
def test_loaders_of_other_batches(tmp_path) -> None:
    """Each size is dispatched by itself; the metrics are the dense ones."""
    torch.manual_seed(0)
    model = Uneven()
    fitted(tmp_path, model, max_epochs=1)
    mine = trainer(tmp_path, strategy=on_cpu_kernels()).validate(model, verbose=False)
    theirs = trainer(tmp_path).validate(model, verbose=False)
    assert len(mine) == 2
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@supported("Sparse evaluation", "32, 64, bf16-true, 16-true, bf16-mixed")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "16-true", "bf16-mixed"])
def test_precisions(tmp_path, precision) -> None:
    """The dense metric to rounding; in double precision, for which there is no kernel, torch multiplies."""
    model = watched()
    run = fitted(tmp_path, model, strategy=on_cpu_kernels(), precision=precision, max_epochs=1)
    mine = run.validate(model, verbose=False)[0]["val"]
    theirs = trainer(tmp_path, precision=precision).validate(model, verbose=False)[0]["val"]
    assert mine == pytest.approx(theirs, rel=1e-5 if precision in ("32-true", "64-true") else 1e-2)
    assert model.seen[-1] == {name: {"dense" if precision == "64-true" else "cpu"} for name in NAMES}


@supported("Sparse evaluation", "`torch.compile(model)`, `model.compile()`")
@pytest.mark.parametrize("how", ["torch.compile", "model.compile"])
def test_compiled(tmp_path, how) -> None:
    """The same metrics, by the sparse kernels; training is that of the compiled dense model."""
    model, twin = watched(), watched()
    compiled = [torch.compile(m, backend="aot_eager") if how == "torch.compile" else m for m in (model, twin)]
    if how == "model.compile":
        for each in (model, twin):
            each.compile(backend="aot_eager")
    run = fitted(tmp_path, compiled[0], strategy=on_cpu_kernels())
    dense = fitted(tmp_path, compiled[1])
    assert metrics(run) == pytest.approx(metrics(dense), rel=1e-5)
    assert_same_weights(model, twin)
    assert model.seen[-1] == CPU
    torch._dynamo.reset()


@supported("Sparse evaluation", "EMA, weight averaging, SWA: their weights are the evaluated ones")
@pytest.mark.parametrize(
    "averaging",
    [
        lambda: EMAWeightAveraging(decay=0.5),
        WeightAveraging,
        lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    ],
)
def test_averages(tmp_path, averaging) -> None:
    """Validation runs on the averaged weights, packed when they are there; the result is the dense run's."""
    model, twin = watched(), watched()
    run = fitted(tmp_path, model, averaging(), strategy=on_cpu_kernels(), max_epochs=3)
    dense = fitted(tmp_path, twin, averaging(), max_epochs=3)
    assert metrics(run) == pytest.approx(metrics(dense), rel=1e-5)
    assert_same_weights(model, twin)
    assert set().union(*(set(seen) for seen in model.seen)) == NAMES


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("evaluate", ["fit", "validate"])
def test_exceptions(tmp_path, evaluate, error) -> None:
    """The very same parameters are there afterwards, and the Trainer can go on."""

    class Fails(Watched):
        broken = True

        def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
            super().validation_step(batch)
            if self.broken and batch_idx == 1:
                raise error

    model = Fails()
    fitted(tmp_path, model, limit_val_batches=0, max_epochs=1)
    before = dict(model.named_parameters())
    run = trainer(tmp_path, strategy=on_cpu_kernels())
    with pytest.raises((error, SystemExit)):
        getattr(run, evaluate)(model)
    assert all(param is before[name] for name, param in model.named_parameters())
    assert run.strategy.acceleration is None
    model.broken = False
    expected = trainer(tmp_path).validate(model, verbose=False)[0]
    assert run.validate(model, verbose=False)[0] == pytest.approx(expected, rel=1e-5)


@supported("Sparse evaluation", "checkpoints saved during validation, in `validation_step` too")
def test_checkpoints(tmp_path) -> None:
    """Dense keys, plain tensors, complete; they load in plain torch, and hold the weights of that moment."""

    class Saves(Watched):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            super().validation_step(batch)
            assert self.held[-1] == NAMES
            self.trainer.save_checkpoint(tmp_path / "within.ckpt")

    model = Saves()
    keep = ModelCheckpoint(tmp_path, monitor="val", save_last=True)
    run = fitted(tmp_path, model, keep, strategy=on_cpu_kernels(), enable_checkpointing=True)
    for file in (tmp_path / "within.ckpt", Path(keep.last_model_path)):
        state = torch.load(file, weights_only=True)["state_dict"]
        assert all(type(tensor) is Tensor for tensor in state.values())
        plain = Net()
        plain.load_state_dict(state)
        assert_same_weights(plain, model)
    resumed = watched()
    again = trainer(tmp_path, sparsity(), strategy=on_cpu_kernels(), max_epochs=2)
    again.fit(resumed, ckpt_path=keep.last_model_path, weights_only=True)
    assert again.global_step == run.global_step
    assert_same_weights(resumed, model)


def test_only_steps_see_it(tmp_path) -> None:
    """Hooks and callbacks around an evaluation step meet the model's own parameters."""

    class Looks(L.Callback):
        looked = 0

        def _look(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
            assert_plain(module)
            self.looked += 1

        on_validation_batch_start = on_validation_batch_end = on_validation_end = on_train_batch_start = _look

    looks, model = Looks(), watched()
    fitted(tmp_path, model, looks, strategy=on_cpu_kernels(), max_epochs=1)
    assert looks.looked > 20
    assert model.held == [NAMES] * len(model.held)


def test_the_sanity_check(tmp_path, capsys) -> None:
    """Runs on sparse kernels, and is not reported."""
    model = watched()
    fitted(tmp_path, model, strategy=on_cpu_kernels(report=True), max_epochs=1, limit_train_batches=0)
    assert model.held
    assert "Sparse evaluation" not in capsys.readouterr().out


def test_a_dense_model_is_warned_of_once(tmp_path) -> None:
    """And left alone, with a reason."""
    model = watched()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(tmp_path, strategy="nm_sparse")
        run.fit(model)
        run.validate(model, verbose=False)
    mine = [str(each.message) for each in caught if "nm_sparse" in str(each.message)]
    assert len(mine) == 1
    assert "no weight of the model is sparse" in mine[0]
    assert "conv.weight: 100% of its weights are not zero" in mine[0]
    assert set().union(*model.held) == set()


def test_reported_once_for_each_function(tmp_path, capsys) -> None:
    """Fit prints one table, however often it validates; so does each evaluation; report=False prints none."""
    model, strategy = watched(), on_cpu_kernels(report=True)
    run = fitted(tmp_path, model, strategy=strategy)
    run.validate(model, verbose=False)
    run.validate(model, verbose=False)
    run.predict(model)
    out = capsys.readouterr().out
    assert out.count("Sparse evaluation: what ran where, and why") == 3
    assert "asked for" in out
    fitted(tmp_path, watched(), strategy=on_cpu_kernels())
    assert "Sparse evaluation" not in capsys.readouterr().out


def test_logged(tmp_path) -> None:
    """As a table where a logger shows text; others are left alone."""
    boards = [TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path)]
    fitted(tmp_path, watched(), strategy=on_cpu_kernels(), logger=boards, max_epochs=3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(boards[0].log_dir)
    events.Reload()
    shown = events.Tensors("nm/backends/text_summary")
    assert len(shown) == 1
    assert b"| conv.weight | (8, 4, 3, 3) | 2:4 | cpu |" in shown[0].tensor_proto.string_val[0]


def test_the_acceleration_is_there_while_it_runs(tmp_path) -> None:
    """`trainer.strategy.acceleration`: during an evaluation, not after."""

    class Asks(Watched):
        def validation_step(self, batch: Any) -> None:
            super().validation_step(batch)
            assert "asked for" in self.trainer.strategy.acceleration.report()

    model = Asks()
    run = fitted(tmp_path, model, strategy=on_cpu_kernels(), max_epochs=1)
    assert model.seen
    assert run.strategy.acceleration is None


class Mine(SparseEvaluation, SingleDeviceStrategy):
    """Somebody's own strategy."""


@supported("Sparse evaluation", "your own strategy, with `SparseEvaluation` mixed in")
def test_the_mixin(tmp_path) -> None:
    """Composed with any of Lightning's."""
    model = watched()
    fitted(tmp_path, model, strategy=Mine("cpu", backend="cpu", report=False), max_epochs=1)
    assert model.seen[-1] == CPU
    with pytest.raises(ValueError, match="no backend"):
        Mine("cpu", backend="gpu")


def test_gradients_in_a_validation_step(tmp_path) -> None:
    """As adversarial validation takes them: they reach the model's own parameters."""

    class Attacks(Watched):
        def validation_step(self, batch: list[Tensor]) -> None:
            assert isinstance(self.conv.weight, HeldWeight)
            with torch.enable_grad():
                super().training_step(batch).backward()
            assert self.conv.weight.grad is not None
            self.zero_grad()

    model = Attacks()
    run = fitted(tmp_path, model, strategy=on_cpu_kernels(), max_epochs=1, inference_mode=False)
    twin = sgd()
    assert run.global_step == fitted(tmp_path, twin, max_epochs=1).global_step


def test_a_strategy_that_was_pickled_is_equal(tmp_path) -> None:
    """As spawned processes get it."""
    import pickle

    strategy = pickle.loads(pickle.dumps(NMSparseStrategy("cpu", backend="cpu")))
    model = watched()
    fitted(tmp_path, model, strategy=strategy, max_epochs=1)
    assert model.seen[-1] == CPU
