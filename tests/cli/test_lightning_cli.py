"""The callback's arguments on command lines and in YAML."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_nm import NMSparsityCallback
from lightning_nm.cli import NMCLI
from lightning_nm.cli.digits import Digits, DigitsMLP
from lightning_nm.training import SRSTE, Schedule

QUICK = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Run in an empty folder, with no arguments of pytest's in sight."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prog"])


def callback_of(cli: LightningCLI) -> NMSparsityCallback:
    (found,) = [c for c in cli.trainer.callbacks if isinstance(c, NMSparsityCallback)]
    return found


def built(*args: str) -> NMSparsityCallback:
    return callback_of(NMCLI(DigitsMLP, Digits, run=False, args=list(args)))


def written(text: str) -> str:
    Path("nm.yaml").write_text(text)
    return "--config=nm.yaml"


@pytest.mark.parametrize(
    "args",
    [
        ["--nm.pattern", "1:4"],
        ["--nm.pattern=[1,4]"],
        ["--nm", "{pattern: 1:4}"],
        ["yaml", "nm: {pattern: 1:4}"],
        ["yaml", "nm:\n  pattern: 1:4"],
        ["yaml", "nm:\n  pattern: '1:4'"],
        ["yaml", "nm:\n  pattern: [1, 4]"],
    ],
)
def test_pattern_in_every_spelling(args):
    """Quoted, as a list, as a flag, and unquoted, which YAML reads as the integer 64."""
    if args[0] == "yaml":
        assert yaml.safe_load(args[1])["nm"]["pattern"] in ("1:4", [1, 4], 64)
        args = [written(args[1])]
    assert built(*args).pattern == "1:4"


def test_every_argument_is_an_option():
    """Overrides with None and unquoted patterns, globs, a method with arguments of its own, the schedule."""
    callback = built(
        written(
            """
            nm:
              pattern: 2:4
              method: {class_path: SRSTE, init_args: {decay: 3.0, placement: decoupled}}
              schedule: {start: 2, refresh: 40, ramp: 7, freeze: 80, dense_from: 90}
              overrides: {net.0: 1:4, net.4: null}
              ignore: ["nothing.*"]
              log_every_n_steps: 5
              picture: net.2.weight
            """
        ),
        "--nm.schedule.refresh=10",
        "--nm.ignore_last_linear=true",
    )
    assert isinstance(callback.method, SRSTE)
    assert (callback.method.decay, callback.method.placement) == (3.0, "decoupled")
    assert callback.schedule == Schedule(start=2, refresh=10, ramp=7, freeze=80, dense_from=90)
    assert callback._model._select.keywords["overrides"] == {"net.0": "1:4", "net.4": None}
    assert callback._model._select.keywords["ignore"] == ["nothing.*"]
    assert callback._model._select.keywords["ignore_last_linear"] is True
    assert (callback.log_every_n_steps, callback.picture) == (5, "net.2.weight")


@pytest.mark.parametrize("method", ["sr_ste", "ste", "frozen", "s_ste"])
def test_methods_by_name(method):
    """The short names are taken as they are."""
    assert type(built(f"--nm.method={method}").method).__name__.lower() == method.replace("_", "")


def test_unknown_pattern_is_a_usage_error(capsys):
    """The parser's error says what a pattern looks like; nothing has been built."""
    with pytest.raises(SystemExit) as stopped:
        built("--nm.pattern=2x4")
    assert stopped.value.code == 2
    assert "write 'N:M' with N kept of every M weights" in capsys.readouterr().err


def test_saved_config_reproduces_the_run():
    """A second run from the config that the first one saved ends with the same weights, bit for bit."""
    args = ["fit", *QUICK, "--seed_everything=7", written("nm: {pattern: 1:4, overrides: {net.4: null}}")]
    first = NMCLI(DigitsMLP, Digits, args=args)
    saved = Path(first.trainer.log_dir) / "config.yaml"
    assert yaml.safe_load(saved.read_text())["nm"]["pattern"] == "1:4"
    second = NMCLI(DigitsMLP, Digits, args=["fit", f"--config={saved}"])
    for mine, theirs in zip(second.model.parameters(), first.model.parameters()):
        assert torch.equal(mine, theirs)
    assert first.model.net[0].weight.count_nonzero() == 64 * 128 // 4
    assert first.model.net[4].weight.count_nonzero() == 1280


def test_plain_lightning_config_works():
    """trainer.callbacks in anyone's LightningCLI, unquoted 2:4 included."""
    Path("plain.yaml").write_text(
        """
        trainer:
          callbacks:
            - class_path: lightning_nm.NMSparsityCallback
              init_args: {pattern: 1:4, overrides: {net.4: 2:4}}
        """
    )
    cli = LightningCLI(DigitsMLP, Digits, args=["fit", "--config=plain.yaml", *QUICK])
    assert callback_of(cli).pattern == "1:4"
    assert cli.model.net[0].weight.count_nonzero() == 64 * 128 // 4
    assert cli.model.net[4].weight.count_nonzero() == 1280 // 2
