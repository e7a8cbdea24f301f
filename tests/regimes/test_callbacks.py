"""Lightning's own callbacks beside ours, in either order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    SpikeDetection,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
)
from torch import nn

from tests.helpers import Net, net, same_bits, trainer
from tests.regimes.matrix import refused, supported
from tests.regimes.watch import (
    LAMBDA,
    LR,
    QuietNet,
    assert_exactly_2_4,
    assert_lambda,
    assert_same_weights,
    assert_whole,
    data,
    dense_weights,
    either_order,
    ordered,
    sparsity,
    steps_of,
    watched,
)

LOGGED, SAVED = {"logger": True}, {"enable_checkpointing": True}

Onlooker = tuple[Callable[[Any], L.Callback], dict[str, Any]]
# regime -> how to make the callback in a folder, and the Trainer's flags that it needs
ONLOOKERS: dict[str, list[Onlooker]] = {
    "`ModelCheckpoint`": [(lambda folder: ModelCheckpoint(folder, monitor="val", every_n_train_steps=2), SAVED)],
    "`OnExceptionCheckpoint`": [(OnExceptionCheckpoint, SAVED)],
    "`EarlyStopping`": [
        (lambda _: EarlyStopping("val", patience=9), {}),
        (lambda _: EarlyStopping("nm/flip_rate", patience=9, check_on_train_epoch_end=True), {}),
    ],
    "`LearningRateMonitor`, `DeviceStatsMonitor`, `ThroughputMonitor`": [
        (lambda _: LearningRateMonitor("step"), LOGGED),
        (lambda _: DeviceStatsMonitor(cpu_stats=False), LOGGED),
        (lambda _: ThroughputMonitor(batch_size_fn=len), LOGGED),
    ],
    "progress bars, `ModelSummary`": [
        (lambda _: TQDMProgressBar(), {"enable_progress_bar": True}),
        (lambda _: RichProgressBar(), {"enable_progress_bar": True}),
        (lambda _: ModelSummary(), {"enable_model_summary": True}),
        (lambda _: RichModelSummary(), {"enable_model_summary": True}),
    ],
    "`Timer`, `LambdaCallback`, `SpikeDetection`": [
        (lambda _: Timer("00:01:00:00"), {}),
        (lambda _: LambdaCallback(on_train_batch_end=lambda *_: None), {}),
        (lambda _: SpikeDetection(), {}),
    ],
}
# these change the training, or are classes to derive from
OTHERS = {
    "BackboneFinetuning",
    "BatchSizeFinder",
    "GradientAccumulationScheduler",
    "LearningRateFinder",
    "ModelPruning",
    *("EMAWeightAveraging", "StochasticWeightAveraging", "WeightAveraging"),  # tests/callbacks/test_averages.py
    *("BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"),
}


def name_of(case: Onlooker) -> str:
    make, _ = case
    return type(make("folder")).__name__


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Net:
    """Trained with no callback but ours."""
    model = net()
    trainer(tmp_path_factory.mktemp("alone"), sparsity()).fit(model)
    return model


@supported("Callbacks", *ONLOOKERS)
@either_order
@pytest.mark.parametrize(
    ("make", "flags"),
    [pytest.param(*case, id=name_of(case)) for cases in ONLOOKERS.values() for case in cases],
)
def test_an_onlooker_changes_nothing(tmp_path, alone, make, flags, first):
    """Beside a callback that only looks on, training is the same bit for bit, and sparse at every forward."""
    accompanied, callback = net(), sparsity()
    with watched() as seen:
        trainer(tmp_path, *ordered(first, callback, make(tmp_path)), **flags).fit(accompanied)
    assert steps_of(callback) == seen.steps
    assert_exactly_2_4(accompanied)
    assert_same_weights(accompanied, alone)


def test_every_callback_is_looked_at():
    """A new Lightning's new callback goes into the table above, or among the others."""
    made = {name_of(case) for cases in ONLOOKERS.values() for case in cases}
    assert made | OTHERS == set(callbacks.__all__)


# -- what is saved, and when to stop -------------------------------------------------------------------


@supported("Callbacks", "`ModelCheckpoint`")
@either_order
@pytest.mark.parametrize("monitor", ["val", "nm/flip_rate"])
def test_every_saved_file_is_sparse_and_whole(tmp_path, monitor, first):
    """The best two and the last: exactly 2:4 weights, and every hidden part beside them."""
    keep = ModelCheckpoint(tmp_path, "{epoch}", monitor, save_top_k=2, save_last=True)
    trainer(tmp_path, *ordered(first, sparsity(), keep), enable_checkpointing=True, max_epochs=4).fit(net())
    files = list(tmp_path.glob("*.ckpt"))
    assert len(files) == 3
    for file in files:
        assert_whole(file)


class Breaks(Net):
    """Its optimizer breaks off the eighth step when weights are updated, and dense."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        def count(*_: Any) -> None:
            if next(updates) == 8:
                raise RuntimeError("broken")

        updates = itertools.count(1)
        optimizer = super().configure_optimizers()
        optimizer.register_step_post_hook(count)  # an optimizer's own hooks run before everybody's, ours
        return optimizer


@supported("Callbacks", "`ModelCheckpoint`", "`OnExceptionCheckpoint`")
@either_order
@pytest.mark.parametrize("kind", [OnExceptionCheckpoint, ModelCheckpoint])
def test_what_an_exception_saves_is_sparse_and_whole(tmp_path, kind, first):
    """Broken off inside the optimizer's update, the file holds 2:4 weights and their hidden parts all the same."""
    keep = kind(tmp_path, "broken", **({"save_on_exception": True} if kind is ModelCheckpoint else {}))
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, *ordered(first, sparsity(), keep), enable_checkpointing=True).fit(Breaks())
    [file] = tmp_path.glob("*.ckpt")
    assert_whole(file)


@supported("Callbacks", "`EarlyStopping`")
@either_order
def test_flip_rate_can_stop_training(tmp_path, first):
    """A threshold that every flip rate passes ends training with the first epoch."""
    stop, callback = EarlyStopping("nm/flip_rate", stopping_threshold=1.0), sparsity()
    trainer(tmp_path, *ordered(first, callback, stop), max_epochs=5).fit(net())
    assert steps_of(callback) == 6


# -- those that change the training --------------------------------------------------------------------


class Finetuned(QuietNet):
    """Its backbone joins the optimizer when it is thawed."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.layer
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.head.parameters(), LR)


@supported("Callbacks", "`BackboneFinetuning`")
@either_order
def test_a_frozen_backbone_keeps_its_hidden_weights_until_it_is_thawed(tmp_path, first):
    """Frozen: sparse, nothing decays. Thawed: it feels lambda from then on."""
    model, callback = Finetuned(), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    thaw = BackboneFinetuning(2, backbone_initial_lr=LR, lambda_func=lambda _: 1.0, should_align=False)
    frozen = {}

    def look(run: L.Trainer, _: Any) -> None:
        [backbone, _head] = callback.sparsifier.weights
        frozen[run.current_epoch] = (backbone.param + backbone.hidden).detach()

    with watched():
        everything = [*ordered(first, callback, thaw), LambdaCallback(on_train_epoch_end=look)]
        trainer(tmp_path, *everything, max_epochs=3).fit(model, data())
    assert same_bits(frozen[1], start["layer.weight"])
    assert not torch.equal(frozen[2], start["layer.weight"])
    assert_lambda(callback, start, 6)


@supported("Callbacks", "`GradientAccumulationScheduler`")
@either_order
def test_accumulation_that_changes_by_epoch_leaves_lambda(tmp_path, first):
    """1, then 2, then 3 batches to a step: lambda is felt once per step."""
    model, callback = QuietNet(), sparsity(decay=LAMBDA)
    start = dense_weights(model)
    with watched() as seen:
        accumulate = GradientAccumulationScheduler({0: 1, 1: 2, 2: 3})
        trainer(tmp_path, *ordered(first, callback, accumulate), max_epochs=3).fit(model, data())
    assert steps_of(callback) == seen.steps == 6 + 3 + 2
    assert_lambda(callback, start, seen.steps)


def pruning(model: Net) -> ModelPruning:
    return ModelPruning("l1_unstructured", [(model.conv, "weight")], use_lottery_ticket_hypothesis=False)


@refused("Callbacks", "`ModelPruning` of a selected weight", "ModelPruning prunes conv.weight")
@either_order
def test_pruning_a_selected_weight(tmp_path, first):
    """Its masks on top of ours are neither 2:4 nor what either of them promises: nobody should train that."""
    model = net()
    trainer(tmp_path, *ordered(first, sparsity(), pruning(model))).fit(model)


@supported("Callbacks", "`ModelPruning` of other weights")
@either_order
def test_pruning_a_weight_that_is_not_selected(tmp_path, first):
    """Each callback keeps to its own weights."""
    model, callback = net(), sparsity(ignore=["conv"])
    with watched(model.conv):
        trainer(tmp_path, *ordered(first, callback, pruning(model))).fit(model)
    assert_exactly_2_4(model.net)
    assert (model.conv.weight == 0).sum() > 0
