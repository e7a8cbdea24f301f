"""Small training runs and what to measure on them, shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_nm.patterns import NM
from lightning_nm.training import SRSTE, Method, Schedule, Selected, SparseWeight, Update

UPDATE = Update(lr=0.1, strength=1.0, grad_scale=None)
ALWAYS = Schedule()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What ``build`` makes, with initial weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mlp(seed: int = 0) -> nn.Module:
    """Two Linear layers of 8 and 16 inputs."""
    return seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)), seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, seed: int = 0, inputs: int = 8) -> Tensor:
    """A regression loss on a batch of its own for every seed."""
    x = noise(4, inputs, seed=1000 + seed)
    return (model(x) - 1).square().mean()


def one_step(model: nn.Module, optimizer: Optimizer, seed: int = 0, inputs: int = 8) -> None:
    optimizer.zero_grad()
    loss_of(model, seed, inputs).backward()
    optimizer.step()


def step_by_decay_alone(model: nn.Module, optimizer: Optimizer) -> None:
    """An optimizer step whose data gradients are all zero."""
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()


def most_kept(weight: Tensor, m: int, dim: int = 1) -> int:
    """The largest number of non-zeros in any group of ``m`` along ``dim``."""
    return int((weight.detach() != 0).movedim(dim, -1).reshape(-1, m).sum(1).max())


def master(weight: SparseWeight) -> Tensor:
    """The dense weight: what the model sees plus what is hidden."""
    assert weight.hidden is not None
    return weight.param.detach() + weight.hidden


@contextmanager
def dense_after_updates(optimizer: Optimizer, param: nn.Parameter) -> Iterator[list[Tensor]]:
    """Copies of ``param`` as each update leaves it: an optimizer's own post-hooks run before global ones."""
    seen: list[Tensor] = []
    handle = optimizer.register_step_post_hook(lambda *_: seen.append(param.detach().clone()))
    yield seen
    handle.remove()


def sparse_weight(dense: Tensor, method: Method | None = None, *, pattern: NM = NM(2, 4), dim: int = 1) -> SparseWeight:
    """A parameter of a copy of these values, already sparse."""
    param = nn.Parameter(dense.clone())
    weight = SparseWeight(Selected("layer.weight", param, pattern, dim), method or SRSTE())
    with torch.no_grad():
        weight.split()
    return weight


def update(weight: SparseWeight, change: Tensor, schedule: Schedule = ALWAYS) -> Tensor:
    """One optimizer step that adds ``change`` to the dense weight; returns the dense weight after it."""
    weight.param.grad = torch.zeros_like(weight.param)
    with torch.no_grad():
        weight.open(UPDATE)
        weight.param += change
        dense = weight.param.detach().clone()
        weight.close(schedule)
    return dense
