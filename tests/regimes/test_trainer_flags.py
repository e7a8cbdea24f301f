"""Every Trainer argument that changes the loop, or what runs around it, on Lightning's own BoringModel."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from lightning_nm import NMSparsityCallback
from tests.helpers import trainer
from tests.regimes.matrix import supported
from tests.regimes.runs import boring, plain_loop
from tests.regimes.watch import BATCHES, assert_exactly_2_4, assert_same_weights, data, sparsity, steps_of, watched

Cases = dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]

# regime -> the Trainer's flags, and what `plain_loop` is told for the same
LOOP: Cases = {
    "`accumulate_grad_batches`": [
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"accumulate_grad_batches": 4}, {"accumulate": 4}),  # with a remainder at the epoch's end
    ],
    "`max_epochs`, `max_steps`, `max_time`": [
        ({"max_epochs": 3, "min_epochs": 2}, {"epochs": 3}),
        ({"max_epochs": -1, "max_steps": 7, "min_steps": 3}, {"steps": 7}),
        ({"max_time": {"hours": 1}}, {}),
        ({"max_time": {"hours": 0}}, {"epochs": 0}),
    ],
    "`limit_train_batches`, `overfit_batches`, `fast_dev_run`": [
        ({"limit_train_batches": 3}, {"limit": 3}),
        ({"limit_train_batches": 0.5}, {"limit": BATCHES // 2}),
        ({"overfit_batches": 2}, {"limit": 2}),
        ({"fast_dev_run": True}, {"steps": 1}),
        ({"fast_dev_run": 3}, {"steps": 3}),
    ],
    "validation at any interval": [
        ({"limit_val_batches": 0}, {}),
        ({"limit_val_batches": 2, "num_sanity_val_steps": 0}, {}),
        ({"num_sanity_val_steps": -1}, {}),
        ({"val_check_interval": 2}, {}),
        ({"val_check_interval": 0.5}, {}),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, {}),
        ({"check_val_every_n_epoch": 2}, {}),
        ({"inference_mode": False}, {}),
    ],
    "`reload_dataloaders_every_n_epochs`": [({"reload_dataloaders_every_n_epochs": 1}, {})],
    "`detect_anomaly`, `deterministic`, `benchmark`": [
        ({"detect_anomaly": True}, {}),
        ({"deterministic": True}, {}),
        ({"deterministic": "warn"}, {}),
        ({"benchmark": True}, {}),
    ],
    "`barebones`": [({"barebones": True, "log_every_n_steps": None}, {})],
    "`profiler`, `logger`, progress bar, model summary": [
        ({"profiler": "simple"}, {}),
        ({"logger": True}, {}),
        ({"logger": True, "log_every_n_steps": 5, "enable_autolog_hparams": False}, {}),
        ({"enable_progress_bar": True, "enable_model_summary": True}, {}),
        ({"enable_checkpointing": True}, {}),
    ],
    "one device, by whatever name": [
        ({"strategy": SingleDeviceStrategy("cpu")}, {}),
        ({"accelerator": "cpu", "strategy": "auto", "devices": "auto", "num_nodes": 1}, {}),
        ({"sync_batchnorm": True, "use_distributed_sampler": False}, {}),
    ],
}
CLIPPING: Cases = {
    "by norm": [
        ({"gradient_clip_val": 0.1}, {"clip": partial(clip_grad_norm_, max_norm=0.1)}),
        (
            {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "norm", "accumulate_grad_batches": 2},
            {"clip": partial(clip_grad_norm_, max_norm=0.1), "accumulate": 2},
        ),
    ],
    "by value": [
        (
            {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
            {"clip": partial(clip_grad_value_, clip_value=0.01)},
        ),
    ],
}


def scaled(**kwargs: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **kwargs)


bf16, half = partial(torch.autocast, "cpu", torch.bfloat16), partial(torch.autocast, "cpu", torch.float16)
PRECISION: Cases = {
    '`precision="32-true"`': [({"precision": "32-true"}, {})],
    '`precision="64-true"`': [({"precision": "64-true"}, {"dtype": torch.float64})],
    '`precision="16-true"`': [({"precision": "16-true"}, {"dtype": torch.float16})],
    '`precision="bf16-true"`': [({"precision": "bf16-true"}, {"dtype": torch.bfloat16})],
    '`precision="bf16-mixed"`': [({"precision": "bf16-mixed"}, {"autocast": bf16})],
    # `precision="16-mixed"` is for GPUs, the plugin behind it runs on a CPU too; its first steps overflow
    '`precision="16-mixed"` with a GradScaler': [
        ({"plugins": MixedPrecision("16-mixed", "cpu", scaled())}, {"autocast": half, "scaler": scaled()}),
        (
            {
                "plugins": MixedPrecision("16-mixed", "cpu", scaled()),
                "gradient_clip_val": 0.1,
                "accumulate_grad_batches": 2,
            },
            {
                "autocast": half,
                "scaler": scaled(),
                "clip": partial(clip_grad_norm_, max_norm=0.1),
                "accumulate": 2,
            },
        ),
    ],
}
ELSEWHERE = {
    "callbacks": "test_callbacks.py",
    "limit_test_batches": "evaluation only",
    "limit_predict_batches": "evaluation only",
    "default_root_dir": "where files go; every run here sets it",
    "model_registry": "names an upload",
}


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    """``deterministic`` and ``benchmark`` outlive their Trainer."""
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


def flat(cases: Cases) -> list[Any]:
    return [pytest.param(*case, id=", ".join(case[0])) for some in cases.values() for case in some]


def watched_fit(folder: Any, flags: dict[str, Any]) -> tuple[BoringModel, NMSparsityCallback]:
    """A fit in which every forward meets exactly 2:4 weights, and every optimizer step is counted."""
    model, callback = boring(), sparsity()
    with watched() as seen:
        trainer(folder, callback, **flags).fit(model, data(), data(1))
    assert steps_of(callback) == seen.steps
    assert_exactly_2_4(model)
    return model, callback


@supported("Precision", *PRECISION)
@supported("Clipping", *CLIPPING)
@supported("Optimization", *LOOP)
@pytest.mark.parametrize(("flags", "told"), flat({**LOOP, **CLIPPING, **PRECISION}))
def test_trains_as_the_plain_loop_does(tmp_path, flags, told):
    """With these flags the callback does, bit for bit, what the core does in a loop written by hand."""
    # copies, for a loss scaler keeps its scale
    model, _ = watched_fit(tmp_path, copy.deepcopy(flags))
    plain = boring()
    plain_loop(plain, **copy.deepcopy(told))
    assert_same_weights(model, plain)


@supported("Precision", "steps that the scaler skips")
def test_a_skipped_step_advances_nothing(tmp_path):
    """Gradients that overflow leave weights, masks, hidden parts and counters where they were."""
    plugin = MixedPrecision("16-mixed", "cpu", scaled(init_scale=2.0**60))
    model, callback = watched_fit(tmp_path, {"plugins": plugin})
    assert steps_of(callback) == 0
    untouched = boring()
    plain_loop(untouched, epochs=0)
    assert_same_weights(model, untouched)


def test_every_trainer_argument_is_looked_at():
    """A new Lightning's new argument goes into one of the tables above, or is said to be none of theirs."""
    tables = [LOOP, CLIPPING, PRECISION]
    used = {flag for table in tables for cases in table.values() for flags, _ in cases for flag in flags}
    known = set(inspect.signature(L.Trainer).parameters)
    assert used | set(ELSEWHERE) == known
