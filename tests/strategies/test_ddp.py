"""``strategy="nm_sparse_ddp"`` and its variants, in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_nm.strategies import NMSparseDDPStrategy
from tests.helpers import same_bits, trainer
from tests.processes import REPOSITORY, torchrun
from tests.regimes.matrix import supported
from tests.strategies.runs import NAMES

Outcome = dict[str, Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[dict[str, Outcome]]:
    """What both processes end with."""
    folder = tmp_path_factory.mktemp("ddp")
    torchrun("tests/strategies/parallel_run.py", folder, "launched")
    return [torch.load(folder / f"launched{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(mine: Outcome, dense: Outcome) -> None:
    """Weights bit for bit, metrics to rounding."""
    for name, weight in dense["weights"].items():
        assert same_bits(mine["weights"][name], weight), name
    assert without_held(mine["fit"]) == pytest.approx(without_held(dense["fit"]), rel=1e-5)


def without_held(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "held"}


@supported("Sparse evaluation", "`nm_sparse_ddp`")
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes(runs, rank) -> None:
    """Both train and validate as dense DDP does, on sparse kernels, and hold their own parameters afterwards."""
    mine, dense = runs[rank]["nm_sparse_ddp"], runs[rank]["ddp"]
    assert_same(mine, dense)
    assert without_held(mine["validated"]) == pytest.approx(without_held(dense["validated"]), rel=1e-5)
    assert dense["fit"]["held"] == 0
    assert mine["fit"]["held"] == mine["validated"]["held"] == len(NAMES)
    assert mine["plain"]


@pytest.mark.parametrize("rank", [0, 1])
def test_sparse_training(runs, rank) -> None:
    """Both processes train on sparse kernels, to one network: dense DDP's up to rounding."""
    mine, dense = runs[rank]["sparse training"], runs[rank]["ddp"]
    assert {("net.0.weight", "cpu"), ("net.2.weight", "cpu")} <= set(mine["trained_by"])
    for name, weight in dense["weights"].items():
        torch.testing.assert_close(mine["weights"][name], weight, atol=1e-4, rtol=1e-3)
        assert same_bits(mine["weights"][name], runs[1 - rank]["sparse training"]["weights"][name])
    assert mine["plain"]


@supported("Sparse evaluation", "`nm_sparse_ddp_spawn`, `nm_sparse_ddp_fork`")
def test_started_by_lightning(runs, tmp_path) -> None:
    """Forked or spawned, the network and its metrics are those of dense DDP."""
    script = [sys.executable, "-W", "ignore", str(REPOSITORY / "tests/strategies/parallel_run.py"), str(tmp_path)]
    done = subprocess.run(
        [*script, "launches"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    started = torch.load(tmp_path / "launches.pt", weights_only=True)
    for how in ("fork", "spawn"):
        assert_same(started[how], runs[0]["ddp"])
        assert started[how]["fit"]["held"] > 0
        assert started[how]["plain"]


@supported("Sparse evaluation", "FSDP2 with `SparseEvaluation` mixed in", note="runs dense, and says why")
@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_weights_run_dense(runs, rank) -> None:
    """No process holds all of a weight: the network is the one without us, and one warning says why."""
    mine, dense = runs[rank]["sparse fsdp2"], runs[rank]["fsdp2"]
    assert_same(mine, dense)
    assert mine["fit"]["held"] == 0
    warned = ["conv.weight: it is sharded: kernels need all of it"] if rank == 0 else []
    assert len(mine["warned"]) == len(warned)
    for message, expected in zip(mine["warned"], warned, strict=True):
        assert expected in message


def test_by_name(tmp_path: Path) -> None:
    """With DDP's own options."""
    strategy = trainer(tmp_path, strategy="nm_sparse_ddp_find_unused_parameters_true", devices=2).strategy
    assert isinstance(strategy, NMSparseDDPStrategy)
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs["find_unused_parameters"]
