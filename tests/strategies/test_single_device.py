"""``strategy="nm_sparse"``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_nm.strategies import NMSparseStrategy
from tests.helpers import trainer
from tests.strategies.runs import NAMES, assert_plain, fitted, watched


@pytest.mark.parametrize(
    "strategy", ["nm_sparse", NMSparseStrategy, lambda: NMSparseStrategy("cpu"), lambda: NMSparseStrategy(device="cpu")]
)
def test_by_name_or_instance(tmp_path, strategy) -> None:
    """On the Trainer's device, or on the one that it was given."""
    model = watched()
    run = fitted(tmp_path, model, strategy=strategy if isinstance(strategy, str) else strategy(), max_epochs=1)
    assert isinstance(run.strategy, SingleDeviceStrategy)
    assert run.strategy.root_device == torch.device("cpu")
    assert run.world_size == 1
    assert any(held == NAMES for held in model.held)
    assert_plain(model)


@pytest.mark.parametrize("strategy", ["nm_sparse", NMSparseStrategy])
def test_more_devices_are_refused(tmp_path, strategy) -> None:
    """With what to use instead."""
    with pytest.raises(ValueError, match=r"nm_sparse runs on one device and the Trainer has 2; use .*nm_sparse_ddp"):
        trainer(tmp_path, strategy=strategy if isinstance(strategy, str) else strategy(), devices=2)


def test_an_unknown_backend() -> None:
    """Is refused at once."""
    with pytest.raises(ValueError, match="no backend 'gpu'"):
        NMSparseStrategy(backend="gpu")


def test_on_the_command_line(tmp_path: Path) -> None:
    """``--trainer.strategy nm_sparse``, as a name, beside a class path of ours that imports the package."""
    script = (
        "from lightning.pytorch.cli import LightningCLI\n"
        "cli = LightningCLI(save_config_callback=None)\n"
        "print('it was', type(cli.trainer.strategy).__name__)"
    )
    digits = "lightning_nm.cli.digits"
    trainer_args = ["max_epochs=1", "limit_train_batches=2", "limit_val_batches=1", "accelerator=cpu", "logger=false"]
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-c", script, "fit", f"--model={digits}.DigitsMLP"),
            *(f"--data={digits}.Digits", "--trainer.callbacks+=lightning_nm.NMSparsityCallback"),
            *(
                "--trainer.callbacks.pattern=2:4",
                "--trainer.strategy=nm_sparse",
                "--trainer.enable_checkpointing=false",
            ),
            *(f"--trainer.{each}" for each in trainer_args),
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "it was NMSparseStrategy" in done.stdout
    assert "Sparse evaluation: what ran where, and why" in done.stdout
