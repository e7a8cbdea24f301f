"""Weights, filters and 1xN blocks at one density, with and without rearranged channels, on a convolutional network.

    python benchmarks/blocks.py

The recipe of Lin et al. (arXiv 2105.14713): train dense, mask once by magnitude, fine-tune under the fixed mask; the
stem and the last Linear stay dense. Real handwritten digits (bundled with scikit-learn), enlarged to 16 x 16. Each
row shows the magnitude that the masks keep, and the test accuracy before and after fine-tuning, over seeds.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import warnings
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm import NMSparsityCallback, Schedule, select
from lightning_nm.callbacks.table import markdown_table
from lightning_nm.cli.digits import Batch, Digits
from lightning_nm.conversion import rearrange

DENSE = ["stem", "head"]


class Block(nn.Module):
    """Two convolutions with batch norm and a residual, at half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.short, self.bn3 = nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.bn3(self.short(x)))


class DigitsConv(L.LightningModule):
    """A small residual network; SGD with momentum and a cosine schedule."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.stem, self.bn = nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Block(32, 32), Block(32, 64), Block(64, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels [B, 64] -> logits [B, 10]."""
        x = F.interpolate(images.view(-1, 1, 8, 8), scale_factor=2.0)
        logits: Tensor = self.head(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))
        return logits

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def test_step(self, batch: Batch) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean(), batch_size=len(labels))

    def configure_optimizers(self):  # type: ignore[no-untyped-def]
        optimizer = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, weight_decay=4e-5)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer(epochs: int, callbacks: list[L.Callback]) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )


def accuracy(model: L.LightningModule) -> float:
    (measured,) = trainer(1, []).test(model, Digits(), verbose=False)
    return 100 * measured["accuracy"]


def patterns(sparsity: float) -> list[str]:
    return [f"{kind}@{sparsity}" for kind in ("unstructured", "filter", "1x2", "1x4", "1x8", "1x16", "1x32")]


def fine_tuned(dense: DigitsConv, pattern: str, rearranged: bool, epochs: int) -> tuple[float, float, float]:
    """(retained magnitude, accuracy right after masking, accuracy after fine-tuning)."""
    model = copy.deepcopy(dense)
    if rearranged:
        rearrange(model, torch.randn(8, 64), select(model, pattern, ignore=DENSE))
    kept = total = 0.0
    masked = copy.deepcopy(model)
    for weight in select(masked, pattern, ignore=DENSE).require().weights:
        magnitude = weight.param.detach().abs()
        mask = weight.pattern.mask(weight.param, dim=weight.dim)
        kept, total = kept + float((magnitude * mask).sum()), total + float(magnitude.sum())
        weight.param.data.mul_(mask)
    once = accuracy(masked)
    model.lr = dense.lr / 5
    callback = NMSparsityCallback(pattern, method="frozen", schedule=Schedule(), ignore=DENSE, report=False)
    trainer(epochs, [callback]).fit(model, Digits())
    return kept / total, once, accuracy(model)


def shown(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20, help="of dense training; fine-tuning takes half")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    results: dict[tuple[str, bool], list[tuple[float, float, float]]] = {}
    dense_accuracy = []
    for seed in range(given.seeds):
        L.seed_everything(seed, verbose=False)
        dense = DigitsConv()
        trainer(given.epochs, []).fit(dense, Digits())
        dense_accuracy.append(accuracy(dense))
        for pattern in patterns(given.sparsity):
            for rearranged in (False, True) if pattern.startswith("1x") else (False,):
                L.seed_everything(seed, verbose=False)
                result = fine_tuned(dense, pattern, rearranged, given.epochs // 2)
                results.setdefault((pattern, rearranged), []).append(result)
    rows = [("dense", "", "1.000", "", shown(dense_accuracy))]
    for (pattern, rearranged), found in results.items():
        retained, once, tuned = zip(*found)
        place = "rearranged" if rearranged else "as trained"
        rows.append((pattern, place, f"{statistics.mean(retained):.3f}", shown(once), shown(tuned)))
    columns = ("pattern", "channels", "retained l1", "accuracy, masked", "accuracy, fine-tuned")
    print(markdown_table(columns, rows))


if __name__ == "__main__":
    main()
