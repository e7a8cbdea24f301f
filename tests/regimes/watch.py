"""What every regime is held against: sparse at each forward, and a measured lambda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import RandomDataset
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader

from lightning_nm import NMSparsityCallback
from lightning_nm.training import SparseWeight
from tests.helpers import net, same_bits

BATCHES = 6  # an epoch of `data`
LAMBDA, LR = 0.5, 1.0  # without a data gradient, a step halves a hidden weight: exactly
QUIET = 16


def sparsity(**kwargs: Any) -> NMSparsityCallback:
    return NMSparsityCallback("2:4", report=False, **kwargs)


# -- sparse at every forward ---------------------------------------------------------------------------


def assert_exactly_2_4(module: nn.Module) -> None:
    """In each Linear and convolution two of every four weights are zero, and the other two are not."""
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            kept = (layer.weight.detach() != 0).movedim(1, -1).reshape(-1, 4).sum(1)
            assert bool((kept == 2).all()), f"{name or type(layer).__name__} is not exactly 2:4"


class Watched:
    """What happened while it was watched."""

    forwards = 0
    steps = 0


@contextmanager
def watched(*dense: nn.Module) -> Iterator[Watched]:
    """Every forward of any Linear or convolution, whoever calls it, must meet exactly 2:4 weights.

    The hooks are PyTorch's global ones, for Lightning's tuner takes the Trainer's callbacks away.
    Layers in ``dense`` may be what they like.
    """
    seen = Watched()

    def look(layer: nn.Module, _: Any) -> None:
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer not in dense and not is_lazy(layer.weight):
            seen.forwards += 1
            assert_exactly_2_4(layer)

    def count(*_: Any) -> None:
        seen.steps += 1

    handles = [nn.modules.module.register_module_forward_pre_hook(look), register_optimizer_step_post_hook(count)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def steps_of(callback: NMSparsityCallback) -> int:
    """Optimizer steps that the callback has seen."""
    assert callback.sparsifier is not None
    return callback.sparsifier.steps


def assert_whole(file: Path) -> None:
    """A checkpoint of `Net`: exactly 2:4 weights, and in our state the other half of them."""
    checkpoint = torch.load(file, weights_only=True)
    model = net()
    model.load_state_dict(checkpoint["state_dict"])
    assert_exactly_2_4(model)
    for name, weight in checkpoint["callbacks"]["NMSparsityCallback"]["weights"].items():
        dense = model.get_parameter(name) + weight["hidden"]
        assert dense.count_nonzero() == dense.numel(), f"{name} has lost hidden weights"


def assert_same_weights(mine: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert same_bits(a, b), f"{name} differs"


# -- beside another callback ---------------------------------------------------------------------------

either_order = pytest.mark.parametrize("first", [True, False], ids=["ours first", "ours last"])


def ordered(first: bool, ours: L.Callback, theirs: L.Callback) -> list[L.Callback]:
    return [ours, theirs] if first else [theirs, ours]


# -- lambda, measured ----------------------------------------------------------------------------------


class Quiet(nn.Linear):
    """Linear(32, 8) that does not hear its first 16 inputs: hidden weights there move by the decay alone."""

    def __init__(self) -> None:
        super().__init__(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([torch.zeros_like(x[:, :QUIET]), x[:, QUIET:]], 1))


def data(seed: int = 0) -> DataLoader[Any]:
    torch.manual_seed(seed)
    return DataLoader(RandomDataset(32, 2 * BATCHES), batch_size=2)


class QuietNet(L.LightningModule):
    """One `Quiet` layer, trained by plain SGD."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = Quiet()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return (self(batch) - 1).square().mean() / 10

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), LR)


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies, to be taken before a fit."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def weight_of(callback: NMSparsityCallback, name: str = "layer.weight") -> SparseWeight:
    assert callback.sparsifier is not None
    [weight] = [w for w in callback.sparsifier.weights if w.name == name]
    return weight


def hidden_left(callback: NMSparsityCallback, start: dict[str, Tensor], name: str = "layer.weight") -> Tensor:
    """What is left of each hidden entry that a `Quiet` layer's decay alone has moved, as a fraction."""
    weight = weight_of(callback, name)
    assert weight.mask is not None
    assert weight.hidden is not None
    there = ~weight.mask.unpack()[:, :QUIET]
    return weight.hidden[:, :QUIET][there].double() / start[name][:, :QUIET][there].double()


def assert_lambda(
    callback: NMSparsityCallback, start: dict[str, Tensor], steps: int, name: str = "layer.weight"
) -> None:
    """Each hidden entry of a `Quiet` layer has felt lambda once in each of ``steps`` steps of SGD: it was halved."""
    assert set(hidden_left(callback, start, name).tolist()) == {(1 - LR * LAMBDA) ** steps}
