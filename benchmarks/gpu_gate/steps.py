"""Training steps of several variants of a network, in turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpu_gate.sections import Row, milliseconds
from lightning_nm.sparse.timing import Timing, stopwatch
from lightning_nm.training import Sparsifier

_WARM = 3
"""Rounds that are not counted."""
_FEWEST = 5


class Variant(NamedTuple):
    """A network of its own in training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    """Forward, under autocast."""
    sparsifier: Sparsifier | None = None

    def step(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    def fault(self) -> str:
        """What is wrong after training; "" if nothing is."""
        with torch.no_grad():
            loss = float(self.loss())
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        for weight in [] if self.sparsifier is None else self.sparsifier.weights:
            if broken := weight.pattern.violations(weight.param, dim=weight.dim):
                return f"{broken} groups of {weight.name} are not {weight.pattern}"
        return ""


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-4, fused=True)


def autocast(device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16)


def take_steps(variants: Mapping[str, Variant], rounds: int, device: str, until: float) -> dict[str, list[float]]:
    """Seconds of each step; one of every variant in a round. The first variant is dense, the second dense again."""
    clock = stopwatch(torch.device(device))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + _WARM):
        if round_ >= _WARM + _FEWEST and time.time() > until:
            break
        for name, variant in variants.items():
            # nobody's masks but its own at each step
            follows: AbstractContextManager[Any] = variant.sparsifier or nullcontext()
            with follows:
                seconds = clock(variant.step)
            if round_ >= _WARM:
                times[name].append(seconds)
    return times


def rows_of(times: dict[str, list[float]], faults: Mapping[str, str], more: Mapping[str, dict[str, Any]]) -> list[Row]:
    """A row for each variant, against the first.

    Args:
        more: what else is known of a variant.
    """
    dense, again = list(times)[:2]

    def over(name: str) -> float:
        """The median over rounds: what slows a moment down slows both."""
        return statistics.median(mine / theirs for mine, theirs in zip(times[name], times[dense]))

    rows = []
    for name, own in times.items():
        means = statistics.fmean(own) / statistics.fmean(times[dense])
        cells = {
            "variant": name,
            "ms a step": milliseconds(Timing.of(own)),
            "over dense, medians": f"{over(name):.3f}",
            "over dense, means": f"{means:.3f}",
            "rounds": str(len(own)),
            **{key: f"{value:.2f}" for key, value in more.get(name, {}).items() if isinstance(value, float)},
            "results": faults[name] or "right",
        }
        record = {
            "variant": name,
            "times": Timing.of(own)._asdict(),
            "over_dense": over(name),
            "over_dense_means": means,
            "noise": over(again),
            **more.get(name, {}),
        }
        rows.append(Row(cells, record, faults[name]))
    return rows
