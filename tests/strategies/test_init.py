"""Names that the Trainer knows."""

from __future__ import annotations

import importlib

import pytest
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

import lightning_nm.strategies
from lightning_nm.strategies import NMSparseDDPStrategy, NMSparseStrategy
from tests.helpers import trainer


def test_every_name_of_ddp_has_a_sparse_twin() -> None:
    """Spawn, fork, notebook, and what Lightning will add; with the same settings."""
    theirs = {name: entry for name, entry in StrategyRegistry.items() if entry["strategy"] is DDPStrategy}
    assert {"ddp", "ddp_spawn", "ddp_fork", "ddp_notebook"} <= set(theirs)
    for name, entry in theirs.items():
        mine = StrategyRegistry[f"nm_sparse_{name}"]
        assert mine["strategy"] is NMSparseDDPStrategy
        assert mine["init_params"] == entry["init_params"]


def test_registered_again() -> None:
    """As after a reload: nothing is raised, nothing is there twice."""
    before = dict(StrategyRegistry)
    importlib.reload(lightning_nm.strategies)
    assert dict(StrategyRegistry) == before


def test_by_the_environment(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``PL_TRAINER_STRATEGY``."""
    monkeypatch.setenv("PL_TRAINER_STRATEGY", "nm_sparse")
    assert type(trainer(tmp_path).strategy) is NMSparseStrategy
