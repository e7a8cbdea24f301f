"""Plain PyTorch loops: sparse at every forward, the very lambda, resumed bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from lightning_nm import Sparsifier, select
from lightning_nm.training import SRSTE
from tests.regimes.loops import (
    DECAY,
    LR,
    STEPS,
    assert_lambda,
    assert_same,
    loss_of,
    network,
    samples,
    state_of,
)
from tests.regimes.matrix import supported
from tests.regimes.watch import watched

AREA = "Without a Trainer"

Step = Callable[[nn.Module, Optimizer, Tensor], Any]


def plain(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    loss_of(model(x)).backward()
    optimizer.step()


def in_closure(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(x))
        loss.backward()
        return loss

    optimizer.step(closure)


def accumulated(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    for micro_batch in x.chunk(4):
        (loss_of(model(micro_batch)) / 4).backward()
    optimizer.step()


def clipped_by_norm(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    loss_of(model(x)).backward()
    clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()


def clipped_by_value(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    loss_of(model(x)).backward()
    clip_grad_value_(model.parameters(), 0.01)
    optimizer.step()


def scaled(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer.zero_grad()
    scaler.scale(loss_of(model(x))).backward()
    scaler.step(optimizer)
    scaler.update()


def all_at_once(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    """Half precision, scaled, accumulated and clipped."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer.zero_grad()
    for micro_batch in x.chunk(4):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model(micro_batch).float()) / 4
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()


def autocast(model: nn.Module, optimizer: Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(x)
    loss_of(outputs.float()).backward()
    optimizer.step()


LOOPS: dict[str, Step] = {
    "plain loop": plain,
    "plain loop, closures": in_closure,
    "plain loop, accumulation": accumulated,
    "plain loop, `clip_grad_norm_`": clipped_by_norm,
    "plain loop, `clip_grad_value_`": clipped_by_value,
    "plain loop, `GradScaler`": scaled,
    "plain loop, autocast": autocast,
    "plain loop, all of these at once": all_at_once,
}


class Run(NamedTuple):
    start: dict[str, Tensor]
    end: dict[str, Tensor]
    forwards: int
    lrs: list[float]


def train(step: Step, **schedule: Any) -> Run:
    """Some optimizer steps of a plain loop; every forward must see sparse weights."""
    model = network()
    optimizer = SGD(model.parameters(), LR)
    scheduler = StepLR(optimizer, step_size=1, **schedule) if schedule else None
    sparsifier = Sparsifier(select(model, "2:4"), SRSTE(DECAY))
    start, lrs = state_of(model, sparsifier), []
    with sparsifier, watched() as seen:
        for index in range(STEPS):
            lrs.append(optimizer.param_groups[0]["lr"])
            step(model, optimizer, samples(index))
            if scheduler is not None:
                scheduler.step()
    return Run(start, state_of(model, sparsifier), seen.forwards, lrs)


@pytest.fixture(scope="module", params=LOOPS)
def run(request):
    return train(LOOPS[request.param])


@supported(AREA, *LOOPS)
def test_every_forward_is_sparse(run):
    """Promise 1, whoever runs the loop."""
    # `watched` looked at the weights of each
    assert run.forwards >= 2 * STEPS


@supported(AREA, *LOOPS)
def test_lambda(run):
    """Scaling, accumulation and clipping leave the decay what was asked for."""
    assert_lambda(run.start, run.end, [LR] * STEPS)


@supported(AREA, "plain loop, learning-rate schedulers")
def test_lambda_follows_the_learning_rate():
    """The decay is part of the gradient, as published: a scheduler that halves the rate halves it too."""
    run = train(plain, gamma=0.5)
    assert run.lrs == [LR * 0.5**step for step in range(STEPS)]
    assert_lambda(run.start, run.end, run.lrs)


@supported(AREA, "plain loop, closures", "plain loop, `GradScaler`")
@pytest.mark.parametrize("step", [in_closure, scaled])
def test_what_changes_no_arithmetic_changes_nothing(step):
    """A closure, and a scale that is a power of two, give the plain run bit for bit."""
    assert_same(train(step).end, train(plain).end)


@supported(AREA, "plain loop, accumulation")
def test_micro_batches_are_their_batch():
    """Same masks, same weights up to the order of a sum."""
    torch.testing.assert_close(train(accumulated).end, train(plain).end, atol=1e-6, rtol=0)


class Loop:
    """All that a training script keeps: AdamW, a schedule, a scaler and a sparsifier."""

    def __init__(self, seed: int = 0) -> None:
        self.model = network(seed)
        optimizer = AdamW(self.model.parameters(), 0.05)
        self.parts = {
            "model": self.model,
            "optimizer": optimizer,
            "scheduler": OneCycleLR(optimizer, 0.1, total_steps=STEPS + 1),
            "scaler": torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2),
            "sparsifier": Sparsifier(select(self.model, "2:4"), SRSTE(DECAY)),
        }

    def train(self, steps: range) -> Loop:
        scaler, optimizer = self.parts["scaler"], self.parts["optimizer"]
        with self.parts["sparsifier"]:
            for step in steps:
                optimizer.zero_grad()
                scaler.scale(loss_of(self.model(samples(step)))).backward()
                scaler.step(optimizer)
                scaler.update()
                self.parts["scheduler"].step()
        return self

    def save(self, path: Path) -> None:
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, path)

    def load(self, path: Path) -> Loop:
        for name, state in torch.load(path, weights_only=True).items():
            self.parts[name].load_state_dict(state)
        return self

    def state(self) -> dict[str, Tensor]:
        return state_of(self.model, self.parts["sparsifier"])


@supported(AREA, "plain loop, checkpoints")
@pytest.mark.parametrize("at", range(1, STEPS))
def test_resuming_is_going_on(at, tmp_path):
    """Promise 2: a run resumed from torch.save and torch.load continues bit for bit."""
    Loop().train(range(at)).save(tmp_path / "part.ckpt")
    resumed = Loop(seed=1).load(tmp_path / "part.ckpt").train(range(at, STEPS))
    assert_same(resumed.state(), Loop().train(range(STEPS)).state())
