"""Lightning fits in every process of a group; rank by rank they write what they end with. Run by test_parallel.py.

torchrun --nproc-per-node 2 parallel_run.py FOLDER STRATEGY
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_nm import NMSparsityCallback, Schedule
from lightning_nm.training import shards
from tests.helpers import Net


class Uneven(Net):
    """Weights of 8, 16, 3 and 1 rows: some do not divide among processes, one leaves a process without rows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
        self.last = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.net[1](self.net[0](self.conv(x).flatten(1)))
        return torch.cat([self.net[2](hidden), self.last(hidden)], 1)

    def train_dataloader(self) -> DataLoader[Any]:
        # the same global batch for every number of processes; Lightning's own sampler would shuffle
        data, world = super().train_dataloader().dataset, self.trainer.world_size
        sampler = DistributedSampler(data, world, self.trainer.global_rank, shuffle=False)  # type: ignore[arg-type]
        return DataLoader(data, batch_size=16 // world, sampler=sampler)


class Sharded(Uneven):
    """Sharded by FSDP2."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        if self.device_mesh is not None and not shards.is_sharded(self.conv.weight):
            for layer in (self.conv, self.net[0], self.net[2], self.last):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Cut(Sharded):
    """A transposed convolution sums over dimension 0, along which FSDP2 shards: 4 inputs in pieces of 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(4, 8, 3)


def seeded(kind: type[Net]) -> Net:
    torch.manual_seed(0)
    return kind()


def fit(
    model: Net,
    strategy: str | Strategy,
    keep: Path | None = None,
    resume: Path | None = None,
    again: str | Strategy | None = None,
    beside: Sequence[L.Callback] = (),
    pattern: str = "2:4",
    **kwargs: Any,
) -> dict[str, Any]:
    """Train for 3 epochs, and ``again`` by another Trainer; what must be the same on all ranks, and in one process."""
    callback = NMSparsityCallback(pattern, report=False, log_every_n_steps=1, **kwargs)
    callbacks: list[L.Callback] = [callback]
    if keep is not None:
        callbacks.append(ModelCheckpoint(keep, filename="{epoch}", save_top_k=-1))
    for one in (strategy,) if again is None else (strategy, again):
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            strategy=one,
            devices=1 if one == "auto" else 2,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=keep is not None,
            default_root_dir=tempfile.gettempdir(),
            callbacks=[*callbacks, *beside],
        )
        trainer.fit(model, ckpt_path=resume, weights_only=True if resume and resume.is_file() else None)
    assert callback.sparsifier is not None
    weights = callback.sparsifier.weights
    hidden = {w.name: shards.whole(w.hidden, w.param) for w in weights if w.hidden is not None}
    masks = {w.name: shards.whole_mask(w.mask, w.param).unpack() for w in weights if w.mask is not None}
    return {
        "weights": {name: shards.whole(shards.piece(p), p).clone() for name, p in model.named_parameters()},
        "hidden": hidden,
        "masks": masks,
        "history": callback.topology.history,
    }


def sharding(folder: bool) -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=folder)


class Diverges(L.Callback):
    """One entry of one gradient, in one process."""

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 4 and trainer.global_rank == 1:
            shards.piece(pl_module.net[0].weight.grad).view(-1)[0] = torch.nan


TRANSPOSABLE: dict[str, Any] = {"pattern": "2:4T", "schedule": Schedule(refresh=2)}


def refusal(kind: type[Net], *beside: L.Callback, **kwargs: Any) -> str:
    """What the user is told."""
    try:
        fit(seeded(kind), sharding(True), beside=beside, **kwargs)
    except ValueError as error:
        return str(error)
    return "not refused"


def main(folder: Path, strategy: str) -> None:
    results = {}
    if strategy == "ddp":
        results["whole"] = fit(seeded(Uneven), "ddp", keep=folder / "ddp")
        results["resumed"] = fit(seeded(Uneven), "ddp", resume=folder / "ddp/epoch=0.ckpt")
        # seeded apart, one network all the same: DDP broadcasts the weights of rank 0
        torch.manual_seed(int(os.environ["RANK"]))
        results["apart"] = fit(Uneven(), "ddp")
        results["s_ste"] = fit(seeded(Uneven), "ddp", method="s_ste")
        results["transposable"] = fit(seeded(Uneven), "ddp", **TRANSPOSABLE)
        results["again"] = fit(seeded(Uneven), "ddp", again="ddp")
    else:
        for name, distributed in (("folder", True), ("file", False)):
            results[name] = fit(seeded(Sharded), sharding(distributed), keep=folder / name)
            results[f"{name} resumed"] = fit(
                seeded(Sharded), sharding(distributed), resume=folder / name / "epoch=0.ckpt"
            )
        results["s_ste"] = fit(seeded(Sharded), sharding(True), method="s_ste")
        results["transposable"] = fit(seeded(Sharded), sharding(True), **TRANSPOSABLE)
        results["again"] = fit(seeded(Sharded), sharding(True), again=sharding(True))
        results["cut"] = refusal(Cut)
        results["layerwise"] = refusal(Sharded, pattern="1x2@0.5")
        results["cut tile"] = refusal(Sharded, pattern="4:8T")
        results["nan"] = refusal(Sharded, Diverges())
    torch.save(results, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
