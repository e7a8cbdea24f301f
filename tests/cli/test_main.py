"""The `lightning-nm` command as a user runs it: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_nm import __version__
from lightning_nm.cli.main import main

USER_MODEL = """
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

class Mine(BoringModel):
    def predict_step(self, batch, batch_idx):
        assert int((self.layer.weight != 0).sum()) <= 32, "predicting with dense weights"
        return self(batch)
"""


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    command = [sys.executable, "-m", "lightning_nm.cli.main", *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_fit_test_predict_and_report_with_a_users_own_model(tmp_path):
    """A model in the current folder, trained 2:4, tested and predicted from its checkpoint, and checked."""
    (tmp_path / "mine.py").write_text(USER_MODEL)
    quick = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    fitted = run(tmp_path, "fit", "--model=mine.Mine", "--nm.pattern=2:4", "--trainer.max_epochs=1", *quick)
    assert fitted.returncode == 0, fitted.stderr
    assert "layer.weight" in fitted.stdout
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    predicted = run(tmp_path, "predict", "--model=mine.Mine", f"--ckpt_path={checkpoint}", *quick)
    assert predicted.returncode == 0, predicted.stderr
    for command in ("validate", "test"):
        assert run(tmp_path, command, "--model=mine.Mine", f"--ckpt_path={checkpoint}", *quick).returncode == 0
    assert main(["report", str(checkpoint), "--pattern", "2:4"]) == 0
    assert main(["report", str(checkpoint), "--pattern", "1:4"]) == 1


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help(args, capsys):
    """Without arguments the commands are listed."""
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "report FILE.ckpt" in shown
    assert "convert FILE.ckpt" in shown
    assert "bench FILE.ckpt" in shown


def test_version(capsys):
    """The installed version."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-nm {__version__}\n"


def test_errors_are_one_line_and_status_2(tmp_path, capsys):
    """A missing checkpoint is told without a traceback."""
    assert main(["report", str(tmp_path / "none.ckpt")]) == 2
    assert capsys.readouterr().err == f"lightning-nm report: there is no checkpoint {tmp_path / 'none.ckpt'}\n"
