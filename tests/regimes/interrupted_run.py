"""Runs that are interrupted again and again, each going on from the newest checkpoint. Run by test_interruption.py:

    python interrupted_run.py FOLDER SIGKILL,24,TMPDIR SIGTERM,6,TMPDIR ...

Each run is a process of its own, forked from this one, which has imported everything: Lightning takes seconds to
start. FOLDER/report.json gets, for each of these arguments, a list of `Trial`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_nm import NMSparsityCallback, Sparsifier, select
from lightning_nm.patterns import NM
from tests.helpers import same_bits, trainer

EPOCH = 2
STEPS = 8 * EPOCH
SELECTED = ("net.0.weight", "net.2.weight")
FINISHED, STOPPED, STOPPED_DENSE, CRASHED = range(4)  # how a run ends that no signal ends at once

Tell = Callable[[str], None]


class Trial(NamedTuple):
    """One run and what it left."""

    begin: int
    """Step of the checkpoint that it went on from."""
    newest: int
    """Step of the newest checkpoint afterwards."""
    exit: int
    reports: str
    """What it did, a letter each: v a validation batch, b a training batch begins, t it is done, s a checkpoint is
    being written, d it is written, f a file is opened or renamed."""
    faults: list[str]
    """Checkpoints that are cut off, not sparse, or not those of the uninterrupted run."""


class Wide(L.LightningModule):
    """Half a million weights: writing a checkpoint takes about as long as a step."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
        self.tell = tell

    def training_step(self, batch: Tensor) -> Tensor:
        # data of the step alone: Lightning starts a plain loader anew when it resumes mid-epoch
        x = torch.randn(8, 512, generator=torch.Generator().manual_seed(self.global_step))
        return (self.net(x) - x.flip(1)).square().mean()

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.tell("b")

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        self.tell("t")

    def validation_step(self, batch: Tensor) -> None:
        self.tell("v")
        self.net(torch.ones(8, 512))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(range(EPOCH))  # type: ignore[arg-type]

    val_dataloader = train_dataloader


class Saves(ModelCheckpoint):
    """Tells when it writes."""

    def __init__(self, tell: Tell, folder: Path, **when: Any) -> None:
        super().__init__(folder, filename="{step}", save_top_k=-1, save_last=True, **when)
        self.tell = tell

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        self.tell("s")
        super()._save_checkpoint(trainer, filepath)
        self.tell("d")


def train(tell: Tell, folder: Path, **when: Any) -> int:
    """One run, from the newest checkpoint if there is one; returns how it ended."""
    model = Wide(tell)
    callbacks = NMSparsityCallback("2:4", log_every_n_steps=1, report=False), Saves(tell, folder, **when)
    run = trainer(folder, *callbacks, enable_checkpointing=True, max_epochs=STEPS // EPOCH)
    try:
        run.fit(model, ckpt_path=newest(folder), weights_only=True)
    except SystemExit:  # what Lightning makes of SIGTERM and Ctrl-C
        dense = any(NM(2, 4).violations(model.get_parameter(name)) for name in SELECTED)
        return STOPPED_DENSE if dense else STOPPED
    return FINISHED


def newest(folder: Path) -> Path | None:
    """The one that Lightning takes for ``ckpt_path="last"``."""
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)


def step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else torch.load(checkpoint, weights_only=True)["global_step"]


def faults(folder: Path, reference: Path) -> list[str]:
    """What is wrong with the checkpoints in ``folder``. Those cut off are removed, so that the next run can go on."""
    found = []
    for path in sorted(folder.glob("*.ckpt")):
        try:
            mine = torch.load(path, weights_only=True)
        except Exception as error:
            found.append(f"{path.name} of {path.stat().st_size} bytes cannot be read: {error}")
            path.unlink()
            continue
        found += [
            f"{path.name}: {name} is not 2:4" for name in SELECTED if NM(2, 4).violations(mine["state_dict"][name])
        ]
        theirs = torch.load(reference / f"step={mine['global_step']}.ckpt", weights_only=True)
        for part in (("state_dict",), ("optimizer_states",), ("callbacks", "NMSparsityCallback")):
            one, other = mine, theirs
            for key in part:
                one, other = one[key], other[key]
            found += [
                f"{path.name}: {'/'.join(part)}{at} is not the uninterrupted run's" for at in different(one, other)
            ]
    return found


def different(mine: Any, theirs: Any, at: str = "") -> list[str]:
    """Where two nested values differ, the last bit included."""
    if isinstance(theirs, dict) and isinstance(mine, dict) and mine.keys() == theirs.keys():
        return [place for key in theirs for place in different(mine[key], theirs[key], f"{at}/{key}")]
    if isinstance(theirs, list) and isinstance(mine, list) and len(mine) == len(theirs):
        return [place for i in range(len(theirs)) for place in different(mine[i], theirs[i], f"{at}/{i}")]
    equal = same_bits(mine, theirs) if isinstance(theirs, Tensor) else mine == theirs
    return [] if equal else [at]


def fork(run: Callable[[Tell], int], watched: Path, signum: int, after: int, delay: float) -> tuple[str, int]:
    """Start ``run`` and signal it ``delay`` seconds after so many reports; returns its reports and exit code."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # nothing stays behind, whatever happens

        def tell(letter: str) -> None:
            os.write(writer, letter.encode())

        def tell_of_files(event: str, args: tuple[Any, ...]) -> None:
            if event in ("open", "os.rename") and str(args[0]).startswith((str(watched), tempfile.gettempdir())):
                tell("f")

        sys.addaudithook(tell_of_files)
        code = CRASHED
        try:
            code = run(tell)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    reports = b""
    while len(reports) < after and (letter := os.read(reader, 1)):
        reports += letter
    time.sleep(delay)
    os.kill(child, signum)
    with os.fdopen(reader, "rb") as rest:
        reports += rest.read()
    return reports.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def interrupt(folder: Path, reference: Path, signum: int, trials: int) -> list[Trial]:
    """Interrupt a run so many times at random moments, then let it end. Ends it sooner, another one begins."""
    rng = random.Random(signum)
    done: list[Trial] = []
    while len(done) <= trials:
        if not done or done[-1].newest == STEPS:
            (current := folder / f"run{len(done)}").mkdir(parents=True)
        begin = step_of(newest(current))
        # the reports crowd where a checkpoint is written, and so do the signals
        after = rng.randrange(1, 40) if len(done) < trials else sys.maxsize
        reports, code = fork(
            lambda tell: train(tell, current, every_n_epochs=1, save_on_exception=signum == signal.SIGTERM),
            current,
            signum,
            after,
            rng.uniform(0, 0.006),
        )
        wrong = faults(current, reference)
        last = newest(current)
        done.append(Trial(begin, step_of(last), code, reports, wrong))
        for path in (*Path(tempfile.gettempdir()).iterdir(), *current.glob("step=*.ckpt")):
            if path != last:
                path.unlink()
    return done


def main(folder: Path, chains: list[str]) -> None:
    torch.set_num_threads(1)  # a fork would lose the others
    for mask in Sparsifier(select(Wide(print), "2:4")).masks().values():
        mask.kept()  # the kernels are compiled here, once for all
    reference = folder / "reference"
    fork(lambda tell: train(tell, reference, every_n_train_steps=1), reference, signal.SIGKILL, sys.maxsize, 0)
    report = []
    for name, trials, tempfile.tempdir in (chain.split(",") for chain in chains):
        report.append(interrupt(folder / str(len(report)), reference, signal.Signals[name], int(trials)))
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
