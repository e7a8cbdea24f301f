"""Fits of two processes, dense and on sparse kernels. Run by test_ddp.py.

torchrun --nproc-per-node 2 parallel_run.py FOLDER [launched]
python parallel_run.py FOLDER launches
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor

from lightning_nm.strategies import NMSparseDDPStrategy, SparseEvaluation
from lightning_nm.training import shards
from tests.strategies.runs import Watched, fitted


class Counted(Watched):
    """Logs how many weights are held in a validation step."""

    def validation_step(self, batch: list[Tensor]) -> None:
        super().validation_step(batch)
        self.log("held", float(len(self.held[-1])), sync_dist=True)

    def on_validation_batch_end(self, *args: Any) -> None:
        pass


class Noting(Counted):
    """Notes who multiplied in training."""

    def __init__(self) -> None:
        super().__init__()
        self.trained_by: set[tuple[str, str]] = set()

    def on_train_batch_end(self, *args: Any) -> None:
        self.trained_by |= {(row.name, row.backend) for row in self.trainer.strategy.sparse_training.rows()}


class Sharded(Counted):
    """By FSDP2, once."""

    sharded = False

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if not self.sharded:
            self.sharded = True
            for layer in (self.conv, self.net[0], self.net[2]):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class ShardedEvaluation(SparseEvaluation, ModelParallelStrategy):
    """A user's own composition."""


def outcome(strategy: str | Strategy, kind: type[Counted] = Counted, *, validate: bool = True) -> dict[str, Any]:
    """What a fit of two epochs ends with, and a validation after it."""
    torch.manual_seed(0)
    model = kind()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = fitted(Path(tempfile.gettempdir()), model, strategy=strategy, devices=2)
    fit = {name: float(value) for name, value in run.callback_metrics.items()}
    validated = run.validate(model, verbose=False) if validate else []
    return {
        "fit": fit,
        "validated": validated[0] if validated else {},
        "weights": {name: shards.whole(shards.piece(p), p).clone() for name, p in model.named_parameters()},
        "plain": all(type(p) is torch.nn.Parameter for p in model.parameters()),
        "trained_by": sorted(getattr(model, "trained_by", ())),
        "warned": [str(each.message) for each in caught if "nm_sparse" in str(each.message)],
    }


def launched() -> dict[str, Any]:
    sharding: dict[str, Any] = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    return {
        "ddp": outcome("ddp"),
        "nm_sparse_ddp": outcome(NMSparseDDPStrategy(backend="cpu", report=False)),
        "sparse training": outcome(
            NMSparseDDPStrategy(backend="cpu", report=False, sparse_training=True), Noting, validate=False
        ),
        "fsdp2": outcome(ModelParallelStrategy(**sharding), Sharded),
        "sparse fsdp2": outcome(ShardedEvaluation(report=False, **sharding), Sharded),
    }


def launches() -> dict[str, Any]:
    return {
        "fork": outcome("nm_sparse_ddp_fork", validate=False),
        "spawn": outcome(NMSparseDDPStrategy(backend="cpu", report=False, start_method="spawn"), validate=False),
    }


if __name__ == "__main__":
    how = {"launched": launched, "launches": launches}[sys.argv[2]]
    torch.save(how(), Path(sys.argv[1]) / f"{sys.argv[2]}{os.environ.get('RANK', '')}.pt")
