"""The fastest of several ways to multiply, by measurement. Dense ones win ties, wrong ones are never chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_nm.sparse.timing import Stopwatch, stopwatch, take_turns, wall_clock

DENSE = ("dense", "onednn")
"""Backends that multiply a dense weight."""
TIE = 0.95
"""A backend must take less than this share of the time of what is simpler: dense, then prepacked, then sparse."""
WORTH = 1e-5
"""Seconds that it must gain besides on a CPU: a loop of measurements is warm, a network is not."""
_SECONDS, _FEWEST, _MOST = 0.02, 3, 20


@dataclass(frozen=True)
class Choice:
    """The backend for products of one size, and why."""

    backend: str
    times: dict[str, float]
    """Seconds of each backend that was measured."""
    reason: str
    size: str = ""
    """Of what was multiplied."""
    lasts: bool = True
    """False: the next call asks anew."""

    def why(self) -> str:
        """Size, reason and times in words."""
        times = ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in self.times.items())
        return f"{self.size}: {self.reason}" + (f" (us: {times})" if times else "")


Candidates = Mapping[str, Callable[[], Tensor]]
"""By name, "dense" among them: each gives the same product."""


def choose(
    candidates: Candidates, device: torch.device, *, in_graph: bool = False, seconds: float | None = None
) -> Choice:
    """Measure.

    Args:
        candidates: those that give another product than dense are not measured.
        device: where they run.
        in_graph: whether it is for a CUDA graph, which issues calls in no time.
        seconds: of measuring, for all together, five rounds in any case; None: a moment.
    """
    wrong = faults(candidates)
    right = {name: call for name, call in candidates.items() if name not in wrong}
    clock = stopwatch(device) if in_graph else _clock(device)
    if seconds is None:
        times = _fastest(right, clock)
    else:
        times = {name: timing.median for name, timing in take_turns(right, seconds, clock=clock).items()}
    worth = WORTH if device.type == "cpu" else 0.0
    best, fastest = "dense", min(times, key=lambda name: times[name])
    for name in sorted(times, key=lambda name: (name not in DENSE, times[name])):
        if times[name] < TIE * times[best] - worth:
            best = name
    enough = f"{1 - TIE:.0%}" + (f" and {worth * 1e6:.0f} us" if worth else "")
    reason = "the fastest" if best == fastest else f"{fastest} gains less than {enough}"
    said = ", ".join(f"{name} {fault}" for name, fault in wrong.items())
    return Choice(best, times, "; ".join([reason, *([said] if said else [])]))


def faults(candidates: Candidates) -> dict[str, str]:
    """What is wrong with those whose product is not that of dense, held against it once: by name, in words."""
    expected, wrong = candidates["dense"](), {}
    for name, call in candidates.items():
        if name == "dense":
            continue
        try:
            if not _agree(call(), expected):  # compiles and packs, too
                wrong[name] = "disagrees with dense"
        except Exception as error:  # whatever is wrong with it, there is dense
            wrong[name] = f"failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return wrong


def _agree(a: Tensor, b: Tensor) -> bool:
    """As far as the order of summation allows."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    finite = b.isfinite()  # in half precision sums may be beyond its largest number
    difference = torch.where(finite, a.float() - b.float(), 0.0).abs().max()
    scale = torch.where(finite, b.float(), 0.0).abs().max()
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2}.get(a.dtype, 3e-2)
    return bool(difference <= tolerance * scale + 1e-30)


def _clock(device: torch.device) -> Stopwatch:
    """Seconds that a call holds anybody up: on a GPU its own time, or the time to issue it where that is longer."""
    clock = stopwatch(device)
    if device.type != "cuda":
        return clock

    def longer(call: Callable[[], object]) -> float:
        issued: list[float] = []
        seconds = clock(lambda: issued.append(wall_clock(call)))
        return max(seconds, issued[-1])

    return longer


def _fastest(runs: Mapping[str, Callable[[], Tensor]], clock: Stopwatch) -> dict[str, float]:
    """Seconds of each, the least of several rounds in which they take turns."""
    times = {name: float("inf") for name in runs}
    begin = time.perf_counter()
    for round_ in range(_MOST):
        for name, call in runs.items():
            times[name] = min(times[name], clock(call))
        if round_ + 1 >= _FEWEST and time.perf_counter() - begin > _SECONDS * len(runs):
            break
    return times
