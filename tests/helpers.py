"""Small Lightning models and trainers that tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SELECTED = {"net.0.weight": 1, "net.2.weight": 1, "conv.weight": 1}


class Net(L.LightningModule):
    """A convolution and two Linears, regressing on fixed random data; AdamW."""

    def __init__(self, lr: float = 1e-2) -> None:
        super().__init__()
        self.lr = lr
        self.conv = nn.Conv2d(4, 8, 3)
        self.net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.conv(x).flatten(1))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        x, y = batch
        return (self(x) - y).square().mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val", self.training_step(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.lr)

    def _data(self, seed: int) -> DataLoader[Any]:
        rng = torch.Generator().manual_seed(seed)
        return DataLoader(
            TensorDataset(torch.randn(48, 4, 4, 4, generator=rng), torch.randn(48, 4, generator=rng)), batch_size=8
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._data(0)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._data(1)


def net(seed: int = 0, **kwargs: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**kwargs)


def trainer(folder: Path, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    """A quiet CPU trainer: 2 epochs of 6 steps, no logger unless asked."""
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
        "callbacks": list(callbacks),
    }
    return L.Trainer(**{**settings, **kwargs})


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit, signs of zeros included."""
    return a.dtype == b.dtype and torch.equal(torch.signbit(a), torch.signbit(b)) and torch.equal(a, b)
