"""A small network on which lambda can be read off exactly, and Fabric's loop over it.

    torchrun --nproc-per-node 2 tests/regimes/loops.py FOLDER

trains it in two processes; each writes what it began and ended with. Run so by test_fabric.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from lightning_nm import Sparsifier, select
from lightning_nm.training import SRSTE
from tests.helpers import same_bits

# With a learning rate of 1, a hidden weight that gets no data gradient is halved by every step: exactly, in any
# floating-point format, and by no other lambda.
DECAY, LR = 0.5, 1.0
SILENT = slice(0, 4)
"""Inputs that are always zero: the weights of the first layer that read them get no data gradient."""
STEPS = 6


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 4))


def samples(step: int) -> Tensor:
    """The inputs of one optimizer step, on all ranks together: [8, 16]."""
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
    x[:, SILENT] = 0
    return x


def loss_of(outputs: Tensor) -> Tensor:
    return (outputs - 1).square().mean() * 0.5


def state_of(model: nn.Module, sparsifier: Sparsifier) -> dict[str, Tensor]:
    """Copies of the weights, and of what is hidden and masked of them."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for weight in sparsifier.weights:
        assert weight.hidden is not None
        assert weight.mask is not None
        state[f"hidden {weight.name}"] = weight.hidden.clone()
        state[f"mask {weight.name}"] = weight.mask.unpack()
    return state


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        assert same_bits(state[name], expected[name]), name


def assert_lambda(start: dict[str, Tensor], end: dict[str, Tensor], lrs: list[float]) -> None:
    """Without data gradient a hidden weight is multiplied by 1 - lr * lambda at each step, and by nothing else."""
    expected = start["hidden 0.weight"][:, SILENT]
    assert expected.count_nonzero() == expected.numel() // 2
    for lr in lrs:
        expected = expected * (1 - lr * DECAY)
    assert torch.equal(end["hidden 0.weight"][:, SILENT], expected)


class FabricRun:
    """A network, wrapped before it is made sparse, and the loop that trains it."""

    def __init__(
        self,
        fabric: Fabric,
        *,
        seed: int = 0,
        compile: Callable[[nn.Module], Any] = lambda module: module,
        micro_batches: int = 1,
        momentum: float = 0.0,
        **clipping: Any,
    ) -> None:
        self.fabric, self.micro_batches, self.clipping = fabric, micro_batches, clipping
        self.network = network(seed)
        optimizer = torch.optim.SGD(self.network.parameters(), LR, momentum=momentum)
        self.model, self.optimizer = fabric.setup(compile(self.network), optimizer)
        self.sparsifier = Sparsifier(select(self.network, "2:4"), SRSTE(DECAY))
        self.start = self.state()

    def train(self, steps: range = range(STEPS)) -> FabricRun:
        with self.sparsifier:
            for step in steps:
                # this rank's part of the step's samples, in micro-batches
                mine = samples(step).chunk(self.fabric.world_size)[self.fabric.global_rank]
                for index, x in enumerate(mine.chunk(self.micro_batches)):
                    accumulating = index < self.micro_batches - 1
                    with self.fabric.no_backward_sync(self.model, enabled=accumulating):
                        self.fabric.backward(loss_of(self.model(x)) / self.micro_batches)
                if self.clipping:
                    self.fabric.clip_gradients(self.model, self.optimizer, **self.clipping)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self

    def state(self) -> dict[str, Tensor]:
        return state_of(self.network, self.sparsifier)

    def save(self, path: Path) -> None:
        self.fabric.save(path, self._stateful())

    def load(self, path: Path) -> FabricRun:
        self.fabric.load(path, self._stateful())
        return self

    def _stateful(self) -> dict[str, Any]:
        # the weights before what is hidden of them: Fabric restores in this order
        return {"model": self.model, "optimizer": self.optimizer, "sparsifier": self.sparsifier}


TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_backward_sync": {"micro_batches": 2},
    "clip_gradients": {"max_norm": 0.3},
    "momentum": {"momentum": 0.5},
}


def main(folder: Path) -> None:
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    states = {}
    for name, settings in TWO_PROCESSES.items():
        # seeded apart: by wrapping them the weights become those of rank 0
        run = FabricRun(fabric, seed=fabric.global_rank, **settings).train()
        states[f"{name}, start"], states[name] = run.start, run.state()
    FabricRun(fabric, momentum=0.5).train(range(3)).save(folder / "half.ckpt")
    resumed = FabricRun(fabric, seed=7, momentum=0.5).load(folder / "half.ckpt").train(range(3, STEPS))
    torch.save({**states, "resumed": resumed.state()}, folder / f"rank{fabric.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
