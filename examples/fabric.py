"""N:M sparse training with Lightning Fabric, on one device or many; saved, and resumed bit for bit.

    python examples/fabric.py --pattern 2:4 --precision bf16-mixed
    python examples/fabric.py --strategy ddp --devices 2 --accelerator cpu

Wrap the model first, then select in the network inside: every rank has the same weights by then, and the
names are the network's own, whatever wraps it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_nm import Sparsifier, select
from lightning_nm.cli.digits import Digits

MICRO_BATCHES = 2


def start(fabric: Fabric, pattern: str) -> dict[str, Any]:
    """A fresh run: what training changes, and a checkpoint must hold."""
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    model, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), 3e-3))
    sparsifier = Sparsifier(select(network, pattern, ignore_last_linear=True))
    # Fabric restores in this order: a sparsifier after the weights that its hidden ones belong to
    return {"model": model, "optimizer": optimizer, "sparsifier": sparsifier, "epochs": 0}


def train(fabric: Fabric, run: dict[str, Any], data: TensorDataset, until: int) -> None:
    model, optimizer = run["model"], run["optimizer"]
    with run["sparsifier"]:
        for epoch in range(run["epochs"], until):
            # the order depends on the epoch alone, so that a resumed run meets it again
            mine: DistributedSampler[Any] = DistributedSampler(data, fabric.world_size, fabric.global_rank, seed=epoch)
            loader = fabric.setup_dataloaders(DataLoader(data, 32, sampler=mine), use_distributed_sampler=False)
            for index, (images, labels) in enumerate(loader, start=1):
                accumulating = index % MICRO_BATCHES > 0 and index < len(loader)
                with fabric.no_backward_sync(model, enabled=accumulating):
                    fabric.backward(F.cross_entropy(model(images), labels) / MICRO_BATCHES)
                if accumulating:
                    continue
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
                optimizer.step()  # lambda is added in here, once: whatever was accumulated, scaled or clipped
                optimizer.zero_grad()
        run["epochs"] = until


@torch.no_grad()
def accuracy(fabric: Fabric, run: dict[str, Any], data: TensorDataset) -> float:
    images, labels = (fabric.to_device(tensor) for tensor in data.tensors)
    right: Tensor = run["model"](images).argmax(1) == labels
    return right.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an N:M sparse classifier of handwritten digits.")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("fabric"), help="for the checkpoints")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, bf16-true, ...")
    given = parser.parse_args()
    fabric = Fabric(
        accelerator=given.accelerator, strategy=given.strategy, devices=given.devices, precision=given.precision
    )
    fabric.launch()
    fabric.seed_everything(0)
    data = Digits()
    data.setup("fit")

    run = start(fabric, given.pattern)
    train(fabric, run, data.train, until=given.epochs // 2)
    fabric.save(given.folder / "half.ckpt", run)
    train(fabric, run, data.train, until=given.epochs)
    fabric.print(f"test accuracy {accuracy(fabric, run, data.test):.2%} on {fabric.world_size} device(s)")

    resumed = start(fabric, given.pattern)
    fabric.load(given.folder / "half.ckpt", resumed)
    train(fabric, resumed, data.train, until=given.epochs)
    pairs = zip(resumed["model"].parameters(), run["model"].parameters())
    same = all(torch.equal(mine, theirs) for mine, theirs in pairs)
    fabric.print(f"resumed after {given.epochs // 2} epochs: {'the same run, bit for bit' if same else 'ANOTHER RUN'}")

    # what is deployed needs nothing of lightning_nm, and no Fabric
    fabric.save(given.folder / "sparse.pt", run["model"].state_dict())
    fabric.print(
        f"check it: lightning-nm report {given.folder / 'sparse.pt'} --pattern {given.pattern} --ignore 4.weight"
    )


if __name__ == "__main__":
    main()
