"""The examples as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_nm.cli.report import main as report

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("digits.py", ["--model.hidden=32", "--trainer.max_epochs=2", "--trainer.log_every_n_steps=5"]),
        (
            "byte_lm.py",
            [
                "--data.megabytes=0.2",
                "--model.layers=2",
                "--model.width=32",
                "--trainer.max_steps=12",
                "--trainer.limit_val_batches=2",
            ],
        ),
    ],
)
def test_example_trains_with_progress_bar_figures_and_a_sparse_checkpoint(tmp_path, script, args):
    """Configured from the command line, with a progress bar, figures and a checkpoint that obeys."""
    command = [sys.executable, str(EXAMPLES / script), "fit", "--nm.pattern=1:4", *args]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Epoch" in done.stdout
    assert {p.name for p in tmp_path.rglob("*.png")} == {"sad.png", "mask.png"}
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert report([str(checkpoint), "--pattern", "1:4"]) == 0
