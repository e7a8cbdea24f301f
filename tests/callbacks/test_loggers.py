"""The same numbers in W&B, TensorBoard and CSV; tables and figures where they can be shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_nm import NMSparsityCallback
from tests.helpers import net, trainer
from tests.wandb_file import history

KEYS = {
    "nm/flips",
    "nm/flip_rate",
    "nm/sparsity",
    *(f"nm/sad_{moment}{suffix}" for moment in ("epoch", "start") for suffix in ("", "_fraction", "_fraction_of_max")),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One fit of 12 steps, measured every 3, into all three loggers at once."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        loggers = [
            WandbLogger(project="nm", save_dir=folder, offline=True),
            TensorBoardLogger(folder, name="tb"),
            CSVLogger(folder, name="csv"),
        ]
        callback = NMSparsityCallback("2:4", log_every_n_steps=3, log_layers=True, report=False)
        # Lightning's own logging interval does not divide ours, and drops nothing
        trainer(folder, callback, logger=loggers, log_every_n_steps=4).fit(net())
        loggers[0].experiment.finish()
    return folder, loggers, callback


def from_csv(runs) -> dict[str, list[float]]:
    _, (_, _, logger), _ = runs
    values: dict[str, list[float]] = {}
    for row in csv.DictReader(Path(logger.experiment.metrics_file_path).read_text().splitlines()):
        for key, value in row.items():
            if key.startswith("nm/") and value:
                values.setdefault(key, []).append(float(value))
    return values


def test_csv_has_every_number(runs):
    """Four measurements of every total, and of every layer."""
    values = from_csv(runs)
    assert set(values) >= KEYS
    assert {len(v) for v in values.values()} == {4}
    assert set(values["nm/sparsity"]) == {0.5}
    assert "nm/net.0.weight/flip_rate" in values
    assert "nm/net.0.weight/sad_start_fraction" in values


def test_counts_and_fractions_agree(runs):
    """Fractions are counts over the selected entries; 2:4 masks can differ everywhere."""
    values = from_csv(runs)
    numel = 8 * 4 * 9 + 16 * 32 + 4 * 16
    for count, fraction, of_max in zip(
        values["nm/sad_start"], values["nm/sad_start_fraction"], values["nm/sad_start_fraction_of_max"]
    ):
        assert count % 2 == 0
        assert fraction == pytest.approx(count / numel)
        assert of_max == pytest.approx(fraction)


def test_tensorboard_has_the_same_numbers_table_and_figures(runs):
    """Scalars equal the CSV's; the tables are text, the figures images."""
    folder, _, _ = runs
    events = EventAccumulator(str(folder / "tb" / "version_0"))
    events.Reload()
    tags = events.Tags()
    expected = from_csv(runs)
    for key, values in expected.items():
        assert [e.value for e in events.Scalars(key)] == pytest.approx(values), key
    assert {"nm/sad", "nm/mask"} <= set(tags["images"])
    assert {"nm/report/text_summary", "nm/layers/text_summary"} <= set(tags["tensors"])


def test_wandb_run_file_has_the_same_numbers_tables_and_figures(runs):
    """A real offline run: keys and values are read back from its run file."""
    folder, _, _ = runs
    (run,) = (folder / "wandb").glob("offline-run-*")
    rows = history(run)
    logged: dict[str, list] = {}
    for row in rows:
        for key, value in row.items():
            logged.setdefault(key, []).append(json.loads(value))
    for key, values in from_csv(runs).items():
        assert logged[key] == pytest.approx(values), key
    for key, kind in {
        "nm/report": "table-file",
        "nm/layers": "table-file",
        "nm/sad": "images/separated",
        "nm/mask": "images/separated",
    }.items():
        assert logged[f"{key}/_type"] == [kind], key
    assert list((run / "files" / "media").rglob("*.png"))


def test_numbers_reach_the_trainers_metrics(runs, tmp_path):
    """EarlyStopping and friends can watch what the callback measures."""
    run = trainer(tmp_path, NMSparsityCallback("2:4", report=False))
    run.fit(net())
    assert set(run.callback_metrics) >= KEYS


def test_steps_that_do_not_log_measure_nothing(tmp_path, monkeypatch):
    """Between two measurements nothing is counted, so no GPU is waited for."""
    from lightning_nm.training import Sparsifier

    asked = []
    take = Sparsifier.take_flips
    monkeypatch.setattr(Sparsifier, "take_flips", lambda self: asked.append(self.steps) or take(self))
    trainer(tmp_path, NMSparsityCallback("2:4", log_every_n_steps=5, report=False)).fit(net())
    assert asked == [5, 6, 10, 12]  # every fifth, and the ends of epochs


def test_a_logger_of_your_own_needs_no_experiment(tmp_path):
    """The least that Lightning asks of a logger is enough."""
    from lightning.pytorch.loggers import Logger

    class Mini(Logger):
        name, version = "mini", 0

        def __init__(self) -> None:
            self.rows: list[dict[str, float]] = []

        def log_metrics(self, metrics, step=None) -> None:
            self.rows.append(metrics)

        def log_hyperparams(self, *args, **kwargs) -> None:
            pass

    logger = Mini()
    trainer(tmp_path, NMSparsityCallback("2:4", report=False), logger=logger).fit(net())
    assert sum("nm/flips" in row for row in logger.rows) == 12
