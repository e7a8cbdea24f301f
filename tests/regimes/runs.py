"""Runs to compare with: a loop written by hand, an uninterrupted fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import lightning as L
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_nm import Sparsifier, select
from tests.helpers import Net, trainer
from tests.regimes.watch import BATCHES, data, sparsity

# -- against a loop written by hand --------------------------------------------------------------------


def boring() -> BoringModel:
    """Lightning's own model of one Linear(32, 2), trained by SGD with a scheduler."""
    torch.manual_seed(0)
    return BoringModel()


def plain_loop(
    model: L.LightningModule,
    *,
    steps: int = -1,
    epochs: int = 2,
    limit: int = BATCHES,
    accumulate: int = 1,
    clip: Callable[[list[nn.Parameter]], Any] | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """The same training without Lightning: PyTorch and the core, for so many epochs or optimizer steps."""
    model.to(dtype)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    [optimizer], [scheduler] = model.configure_optimizers()  # type: ignore[misc]
    with Sparsifier(select(model, "2:4")) as sparsifier:
        for _ in range(epochs):
            for i, batch in enumerate(list(data())[:limit]):
                with autocast():
                    loss = model.training_step(batch.to(dtype), i)["loss"] / accumulate
                scaler.scale(loss).backward()
                if (i + 1) % accumulate == 0 or i + 1 == limit:
                    scaler.unscale_(optimizer)
                    if clip is not None:
                        clip(list(model.parameters()))
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                if sparsifier.steps == steps:
                    return
            scheduler.step()


# -- against an uninterrupted fit -----------------------------------------------------------------------


class Sgd(Net):
    """Its optimizer remembers nothing, so two fits can equal one; and it tests and predicts."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.05)

    def test_step(self, batch: list[Tensor]) -> None:
        self.validation_step(batch)

    def predict_step(self, batch: list[Tensor]) -> Tensor:
        return self(batch[0])

    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    predict_dataloader = test_dataloader


def sgd(seed: int = 0) -> Sgd:
    torch.manual_seed(seed)
    return Sgd()


@cache
def trained(epochs: int, seed: int = 0) -> Net:
    """What one uninterrupted fit makes of `sgd`: to be compared with, not to be trained on."""
    model = sgd(seed)
    trainer(Path(gettempdir()), sparsity(), max_epochs=epochs).fit(model)
    return model


class Late(Sgd):
    """`Sgd` whose layers are made by ``setup`` or ``configure_model``, with the very weights of `sgd()`."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        del self.conv, self.net

    def make(self) -> None:
        if not hasattr(self, "net"):
            made = sgd()
            self.conv, self.net = made.conv, made.net

    def setup(self, stage: str) -> None:
        if self.where == "setup":
            self.make()

    def configure_model(self) -> None:
        self.make()
