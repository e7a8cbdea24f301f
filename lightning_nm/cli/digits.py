"""A small classifier of scikit-learn's bundled digits: real data, no download, seconds to train."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

Batch = tuple[Tensor, ...]


class Digits(L.LightningDataModule):
    """1,797 handwritten digits of 8 x 8 pixels, split 60 / 20 / 20, the same split for every seed.

    Args:
        batch_size: images per batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
        first, second = len(x) * 6 // 10, len(x) * 8 // 10
        self.train = TensorDataset(x[:first], y[:first])
        self.val = TensorDataset(x[first:second], y[first:second])
        self.test = TensorDataset(x[second:], y[second:])

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.val, 512)

    def test_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.test, 512)


class DigitsMLP(L.LightningModule):
    """64 pixels -> two hidden layers -> 10 classes.

    Args:
        hidden: width of the hidden layers.
        lr: AdamW's learning rate.
    """

    def __init__(self, hidden: int = 128, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Pixels [B, 64] -> logits [B, 10]."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        self._log_accuracy("val", batch)

    def test_step(self, batch: Batch) -> None:
        self._log_accuracy("test", batch)

    def _log_accuracy(self, stage: str, batch: Batch) -> None:
        images, labels = batch
        accuracy = (self(images).argmax(1) == labels).float().mean()
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)
