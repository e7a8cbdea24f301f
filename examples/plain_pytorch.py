"""N:M sparse training in a plain PyTorch loop: train, evaluate, save, and resume bit for bit.

    python examples/plain_pytorch.py --pattern 2:4 --epochs 20 --fp16

Sparsity is `select`, `Sparsifier`, and `with sparsifier:` around the loop. The rest is any training loop, here
with gradient accumulation, clipping and (``--fp16``) loss scaling.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_nm import Sparsifier, select
from lightning_nm.cli.digits import Digits

MICRO_BATCHES = 2
# in this order they are restored: a sparsifier joins its hidden weights with the model's, and refuses any others
PARTS = ("model", "optimizer", "scaler", "sparsifier")


class Classifier(nn.Module):
    """64 pixels -> 10 classes, with nothing about sparsity in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.second(F.relu(self.first(images)))))
        return logits


class Run:
    """What training changes, and a checkpoint must hold."""

    def __init__(self, pattern: str, fp16: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = Classifier()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 3e-3, weight_decay=0.01)
        self.scaler = torch.amp.GradScaler("cpu", enabled=fp16)
        # from here on the weights of both hidden layers are exactly N:M, except while the optimizer updates them
        self.selection = select(self.model, pattern, ignore=["head"])
        self.sparsifier = Sparsifier(self.selection)
        self.epochs = 0

    def train(self, data: TensorDataset, until: int) -> None:
        with self.sparsifier:
            for epoch in range(self.epochs, until):
                # the order depends on the epoch alone, so that a resumed run meets it again
                order = torch.Generator().manual_seed(epoch)
                for images, labels in DataLoader(data, 64, shuffle=True, generator=order):
                    self.step(images, labels)
            self.epochs = until

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        for some, theirs in zip(images.chunk(MICRO_BATCHES), labels.chunk(MICRO_BATCHES)):
            with torch.autocast("cpu", torch.float16, enabled=self.scaler.is_enabled()):
                loss = F.cross_entropy(self.model(some), theirs, reduction="sum") / len(labels)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        # lambda is added in here, once, after unscaling and clipping
        self.scaler.step(self.optimizer)
        self.scaler.update()

    @torch.no_grad()
    def accuracy(self, data: TensorDataset) -> float:
        images, labels = data.tensors
        right: Tensor = self.model(images).argmax(1) == labels
        return right.float().mean().item()

    def save(self, path: Path) -> None:
        torch.save({name: getattr(self, name).state_dict() for name in PARTS} | {"epochs": self.epochs}, path)

    def load(self, path: Path) -> None:
        checkpoint = torch.load(path, weights_only=True)
        for name in PARTS:
            getattr(self, name).load_state_dict(checkpoint[name])
        self.epochs = checkpoint["epochs"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an N:M sparse classifier of handwritten digits.")
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--fp16", action="store_true", help="half precision with loss scaling")
    parser.add_argument("--folder", type=Path, default=Path("plain_pytorch"), help="for the checkpoints")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    data = Digits()
    data.setup("fit")
    run = Run(given.pattern, given.fp16, seed=0)
    print(*(f"{weight.name}: {weight.pattern}" for weight in run.selection.weights), sep="\n")
    print(*(f"{skipped.name}: dense, {skipped.reason}" for skipped in run.selection.skipped), sep="\n")
    run.train(data.train, until=given.epochs // 2)
    run.save(given.folder / "half.pt")
    run.train(data.train, until=given.epochs)
    print(f"test accuracy {run.accuracy(data.test):.2%}")

    resumed = Run(given.pattern, given.fp16, seed=1)
    resumed.load(given.folder / "half.pt")
    resumed.train(data.train, until=given.epochs)
    same = all(torch.equal(mine, theirs) for mine, theirs in zip(resumed.model.parameters(), run.model.parameters()))
    print(f"resumed after {given.epochs // 2} epochs: {'the same run, bit for bit' if same else 'ANOTHER RUN'}")

    # what is deployed needs nothing of lightning_nm
    torch.save(run.model.state_dict(), given.folder / "sparse.pt")
    print(f"check it: lightning-nm report {given.folder / 'sparse.pt'} --pattern {given.pattern} --ignore 'head.*'")


if __name__ == "__main__":
    main()
