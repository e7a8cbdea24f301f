"""Runs that are killed, stopped or break off go on as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

import lightning_nm
from lightning_nm import NMSparsityCallback, Sparsifier, select
from lightning_nm.patterns import NM
from tests.helpers import SELECTED, Net, same_bits, trainer
from tests.regimes.interrupted_run import FINISHED, STEPS, STOPPED, Trial, different, newest
from tests.regimes.matrix import supported

# -- signals, sent to processes ---------------------------------------------------------------------------


def elsewhere(folder: Path) -> Path | None:
    """A folder on another file system."""
    others = [path for path in (Path("/dev/shm"), Path("/var/tmp"), Path.home()) if os.access(path, os.W_OK)]
    return next((path for path in others if path.stat().st_dev != folder.stat().st_dev), None)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Trial]]:
    """What became of the runs of interrupted_run.py."""
    folder, near = tmp_path_factory.mktemp("chains"), tmp_path_factory.mktemp("near")
    far = Path(tempfile.mkdtemp(prefix="lightning-nm-", dir=elsewhere(folder)))
    wanted = [f"SIGKILL,24,{near}", f"SIGKILL,32,{far}", f"SIGTERM,6,{near}", f"SIGINT,6,{near}"]
    script = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("interrupted_run.py")), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    try:
        done = subprocess.run([*script, *wanted], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        print(done.stderr)
        report = json.loads((folder / "report.json").read_text())
    finally:
        shutil.rmtree(far)
        shutil.rmtree(folder)
    return {name: [Trial(*trial) for trial in trials] for name, trials in zip(("kill", "far", "term", "int"), report)}


def assert_goes_on(trials: list[Trial], exits: set[int]) -> None:
    """No checkpoint was ever wrong, no run lost what was saved, and the last one ended as the uninterrupted run."""
    assert [fault for trial in trials for fault in trial.faults] == []
    assert {trial.exit for trial in trials[:-1]} <= exits | {FINISHED}
    assert all(trial.newest >= trial.begin for trial in trials)
    assert (trials[-1].exit, trials[-1].newest) == (FINISHED, STEPS)


def assert_killed_anywhere(trials: list[Trial]) -> None:
    killed = [trial.reports for trial in trials if trial.exit == -signal.SIGKILL]
    writing = [reports for reports in killed if reports.rfind("s") > reports.rfind("d")]
    assert len(killed) >= 20
    assert min(len(writing), len(killed) - len(writing)) >= 4


@supported("Interruption", "SIGKILL at any moment; resumed from the newest checkpoint")
def test_killed_at_any_moment(chains):
    """Promise 2: checkpoints are whole or absent, 2:4, and continue the run bit for bit, flips and SAD included."""
    assert_killed_anywhere(chains["kill"])
    assert_goes_on(chains["kill"], {-signal.SIGKILL})


@supported("Interruption", "SIGKILL with TMPDIR on another file system than the checkpoints")
def test_killed_with_temporary_files_elsewhere(chains, tmp_path):
    """Promise 2: no checkpoint is cut off where a temporary file cannot simply be renamed into its place."""
    if elsewhere(tmp_path) is None:
        pytest.skip("there is one file system only")
    assert_killed_anywhere(chains["far"])
    assert_goes_on(chains["far"], {-signal.SIGKILL})


@supported("Interruption", "SIGTERM (preemption), with `ModelCheckpoint(save_on_exception=True)`")
def test_terminated(chains):
    """The batch is finished, the checkpoint saved then loses no step, and the run goes on bit for bit."""
    assert_goes_on(chains["term"], {STOPPED, -signal.SIGTERM})  # the latter before Lightning listens
    for trial in chains["term"]:
        assert trial.newest == trial.begin + trial.reports.count("t")


@supported("Interruption", "Ctrl-C at any moment; resumed from the newest checkpoint")
def test_interrupted_from_the_keyboard(chains):
    """Lightning shuts down, the weights in memory are 2:4, and the newest checkpoint continues the run bit for bit."""
    assert_goes_on(chains["int"], {STOPPED})


# -- exceptions, at chosen moments ------------------------------------------------------------------------


class Descent(torch.optim.SGD):
    """Parameter by parameter, with something that happens in between."""

    def __init__(self, params: Iterable[Tensor], in_between: Callable[[], None]) -> None:
        super().__init__(params, 0.05)
        self.in_between = in_between

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        loss = closure()
        with torch.no_grad():
            for i, param in enumerate(self.param_groups[0]["params"]):
                if i == 3:
                    self.in_between()
                param -= 0.05 * param.grad
        return loss


class Still(Net):
    """Every batch is the same: Lightning starts a plain loader anew when it resumes mid-epoch."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.in_update: Callable[[], None] = lambda: None

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return super().training_step(next(iter(self.val_dataloader())))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Descent(self.parameters(), self.in_update)


def fit(folder: Path, *callbacks: L.Callback, model: Still | None = None, **kwargs: Any) -> dict[str, Any]:
    """A run; returns all that another one must equal."""
    model, sparsity = model or Still(), NMSparsityCallback("2:4", log_every_n_steps=1, report=False)
    run = trainer(folder, sparsity, *callbacks, enable_checkpointing=bool(callbacks), limit_val_batches=2)
    run.fit(model, weights_only=True, **kwargs)
    return {"model": model.state_dict(), "sparsity": sparsity.state_dict()}


def assert_sparse(weights: dict[str, Tensor]) -> None:
    assert [name for name, dim in SELECTED.items() if NM(2, 4).violations(weights[name], dim=dim)] == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return fit(tmp_path_factory.mktemp("whole"))


@supported("Interruption", "an exception or Ctrl-C in the midst of an optimizer's update, in validation, while saving")
@pytest.mark.parametrize(
    ("moment", "call", "error"),
    [
        ("on_sanity_check_start", 1, KeyboardInterrupt),
        ("on_before_zero_grad", 4, KeyboardInterrupt),
        ("on_after_backward", 6, RuntimeError),
        ("in_update", 6, KeyboardInterrupt),
        ("in_update", 6, RuntimeError),
        ("on_train_batch_end", 8, RuntimeError),
        ("on_validation_batch_start", 4, KeyboardInterrupt),
        ("on_save_checkpoint", 3, RuntimeError),
        ("on_save_checkpoint", 3, KeyboardInterrupt),
    ],
)
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint", "ignore:.*loader is not resumable")
def test_breaks_off(tmp_path, uninterrupted, moment, call, error):
    """Promise 1 for the weights in memory and what is saved of them then; promise 2 for what was saved before."""
    often = ModelCheckpoint(tmp_path / "often", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    broken = ModelCheckpoint(tmp_path / "broken", filename="broken", every_n_epochs=100, save_on_exception=True)
    model, breaks = Still(), L.Callback()
    fails = Mock(side_effect=itertools.chain([None] * (call - 1), [error("broken")], itertools.repeat(None)))
    setattr(model if moment == "in_update" else breaks, moment, fails)
    breaks.on_exception = lambda *_: assert_sparse(model.state_dict())  # comes before the checkpoints' own
    with pytest.raises((RuntimeError, SystemExit)):
        fit(tmp_path, breaks, often, broken, model=model)
    saved = newest(tmp_path / "often")
    if saved is not None:
        # half an update may be in it: it is not the uninterrupted run's, but it can be gone on from
        assert_sparse(fit(tmp_path, ckpt_path=tmp_path / "broken/broken.ckpt")["model"])
    assert different(fit(tmp_path, ckpt_path=saved), uninterrupted) == []


class CtrlC:
    """Traces this process, and interrupts it at the ``line``-th line that it runs of the package."""

    def __init__(self, line: int) -> None:
        self.ahead = line

    def __call__(self, frame: Any, event: str, arg: Any) -> CtrlC | None:
        if not frame.f_code.co_filename.startswith(lightning_nm.__path__[0]):
            return None
        self.ahead -= event == "line"
        if event == "line" and self.ahead == 0:
            raise KeyboardInterrupt
        return self


def interrupted_step(line: int) -> tuple[list[Tensor], list[Tensor], bool]:
    """The dense weights before and after a step that is interrupted at that line, and whether it came to its end."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    sparsifier, debugger, ended = Sparsifier(select(model, "2:4")), sys.gettrace(), False

    def dense() -> list[Tensor]:
        state = sparsifier.state_dict()
        assert list(state) == ["0.weight", "1.weight"], f"weights are forgotten after line {line}"
        return [layer.weight.detach() + mine["hidden"] for layer, mine in zip(model, state.values())]

    with suppress(KeyboardInterrupt), sparsifier:
        model(torch.ones(4, 16)).square().mean().backward()
        optimizer.step()
        before = dense()
        sys.settrace(CtrlC(line))
        try:
            sparsifier.adopt(select(model, "2:4"))  # as the callback does when an epoch begins
            optimizer.step()
            ended = True
        finally:
            sys.settrace(debugger)
    assert [NM(2, 4).violations(layer.weight) for layer in model] == [0, 0], f"dense after line {line}"
    return before, dense(), ended


@supported("Interruption", "Ctrl-C at any line of a step")
def test_ctrl_c_at_any_line_of_a_step():
    """Promises 1 and 2: weights are left 2:4, and together with the hidden parts hold all that was learned."""
    whole = interrupted_step(0)[1]
    for line in itertools.count(1):
        before, after, ended = interrupted_step(line)
        if ended:
            break
        for mine, *allowed in zip(after, before, whole):
            assert any(same_bits(mine, other) for other in allowed), f"something is lost after line {line}"
    assert line > 300
