"""A user's file: models, data and functions that `lightning-nm convert` is to find by their import paths."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(
            nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), *[nn.Linear(width, width) for _ in range(depth)]
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))

    def training_step(self, batch):
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val", self.training_step(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class Lenient(Net):
    strict_loading = False


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int = 8, rows: int = 64) -> None:
        super().__init__()
        self.batch_size, self.rows = batch_size, rows

    def setup(self, stage: str) -> None:
        rng = torch.Generator().manual_seed(0)
        x = torch.randn(self.rows, 16, generator=rng) @ torch.randn(16, 16, generator=rng)
        self.rows_of_data = TensorDataset(x, x[:, :3])

    def train_dataloader(self):
        print(f"batches of {self.batch_size}")
        return DataLoader(self.rows_of_data, self.batch_size)

    val_dataloader = train_dataloader


class NeedsTrainer(Data):
    def train_dataloader(self):
        return DataLoader(self.rows_of_data, self.trainer.world_size)


def plain(width: int = 8):
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 8))


def batches():
    return [torch.ones(4, 16), torch.zeros(4, 16)]


def one_by_one():
    return (torch.ones(rows, 16) for rows in (4, 4, 1))


class Partial(Net):
    """Saves and loads its head only."""

    strict_loading = False

    def state_dict(self, *args, **kwargs):
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if "head" in name}


class Several(Data):
    def train_dataloader(self):
        return {"a": None}


def run_it(model, batch):
    model(batch[0])
    print("called")


def run_rows(model, batch):
    model(batch)


def no_model():
    return 3
