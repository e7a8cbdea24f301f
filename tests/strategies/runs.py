"""Lightning fits and evaluations to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_nm import NMSparsityCallback
from lightning_nm.sparse.held import HeldWeight
from lightning_nm.strategies import NMSparseStrategy
from tests.helpers import same_bits, trainer
from tests.regimes.runs import Sgd

NAMES = {"conv.weight", "net.0.weight", "net.2.weight"}


def sparsity() -> NMSparsityCallback:
    return NMSparsityCallback("2:4", report=False)


def on_cpu_kernels(**kwargs: Any) -> NMSparseStrategy:
    """Takes the sparse kernels though the layers are far too small to gain."""
    return NMSparseStrategy(backend="cpu", **{"report": False, **kwargs})


class Watched(Sgd):
    """Notes who multiplied in each evaluation step, and with what it holds then."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, set[str]]] = []
        self.held: list[set[str]] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        super().validation_step(batch)
        self._look()

    def predict_step(self, batch: list[Tensor]) -> Tensor:
        out = super().predict_step(batch)
        self._look()
        return out

    def _look(self) -> None:
        self.held.append({name for name, param in self.named_parameters() if isinstance(param, HeldWeight)})
        acceleration = getattr(self.trainer.strategy, "acceleration", None)
        if acceleration is not None:
            self.seen.append({name: {c.backend for c in made} for name, made in acceleration.choices.items()})

    def on_validation_batch_end(self, *args: Any) -> None:
        assert_plain(self)


def watched(seed: int = 0) -> Watched:
    torch.manual_seed(seed)
    return Watched()


class Uneven(Watched):
    """Two validation loaders, of batches of 7 and 48: the last one of the first holds 6."""

    def val_dataloader(self) -> Any:
        data = super().val_dataloader().dataset
        return [DataLoader(data, batch_size=7), DataLoader(data, batch_size=48)]

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int) -> None:
        super().validation_step(batch)


def assert_plain(model: nn.Module) -> None:
    """The model holds its own parameters."""
    assert all(type(param) is nn.Parameter for param in model.parameters())


def assert_same_weights(model: nn.Module, other: nn.Module) -> None:
    """Bit for bit."""
    theirs = dict(other.named_parameters())
    for name, param in model.named_parameters():
        assert same_bits(param.detach(), theirs[name].detach()), name


def fitted(folder: Path, model: L.LightningModule, *callbacks: L.Callback, **kwargs: Any) -> L.Trainer:
    run = trainer(folder, sparsity(), *callbacks, **kwargs)
    run.fit(model)
    return run


def metrics(run: L.Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in run.callback_metrics.items()}
