"""A LightningModule on which lambda can be read off: some of its weights get no data gradient."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_nm import NMSparsityCallback
from lightning_nm.training import SRSTE, Method
from tests.helpers import trainer

DECAY, LR = 0.5, 1.0
"""A hidden weight without data gradient is halved by every step: exactly, in every floating-point format."""
SILENT = slice(0, 8)
"""Inputs that are always zero, so that the first layer's weights there get no data gradient."""


class Silent(L.LightningModule):
    """Two Linears under SGD; six batches of four."""

    def __init__(self, *, fused: bool = False, infinite: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))
        self.fused, self.infinite = fused, infinite

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = (self.net(batch[0]) - 1).square().mean()
        # a batch whose gradients overflow
        return loss * torch.inf if batch_idx == self.infinite else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LR, fused=self.fused)

    def train_dataloader(self) -> DataLoader[Any]:
        x = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
        x[:, SILENT] = 0
        return DataLoader(TensorDataset(x.to(self.dtype)), batch_size=4)


class Measured(L.Callback):
    """The silent hidden weights, and the counted steps, after each batch."""

    def __init__(self, sparsity: NMSparsityCallback) -> None:
        self.sparsity = sparsity
        self.hidden: list[Tensor] = []
        self.steps: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._measure()

    def on_train_batch_end(self, *_: Any) -> None:
        self._measure()

    def _measure(self) -> None:
        sparsifier = self.sparsity.sparsifier
        assert sparsifier is not None
        hidden = sparsifier.weights[0].hidden
        assert hidden is not None
        self.hidden.append(hidden[:, SILENT].clone())
        self.steps.append(sparsifier.steps)


def measured(
    folder: Any, model: Silent, method: Method = SRSTE(DECAY), before: bool = False, **kwargs: Any
) -> Measured:
    """One epoch of six batches."""
    sparsity = NMSparsityCallback("2:4", method=method, decay_before_clipping=before, report=False)
    measure = Measured(sparsity)
    trainer(folder, sparsity, measure, max_epochs=1, **kwargs).fit(model)
    return measure


def silent(**kwargs: Any) -> Silent:
    torch.manual_seed(0)
    return Silent(**kwargs)
