"""How long calls take, side by side: in rounds in which they take turns, so that a noisy moment meets all alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Call = Callable[[], object]
Stopwatch = Callable[[Call], float]
"""Runs a call; its seconds."""
_BUSY, _BUSIEST = 200_000, 12_800_000
"""Cycles for which a card is kept busy while a call is issued: some 0.1 ms, and more where that was too little."""


class Timing(NamedTuple):
    """Seconds of one call."""

    median: float
    low: float
    """A quarter of the rounds took less."""
    high: float
    """A quarter of the rounds took more."""
    least: float
    rounds: int

    @classmethod
    def of(cls, times: list[float]) -> Timing:
        """Of two rounds or more."""
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, low, high, min(times), len(times))


def wall_clock(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def stopwatch(device: torch.device) -> Stopwatch:
    """The wall clock; on a GPU its own clock, of calls that find nothing of their operands in its caches."""
    if device.type != "cuda":
        return wall_clock
    # twice the cache is written before each call
    cache = torch.empty(2 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    busy = _BUSY

    def gpu_clock(call: Call) -> float:
        nonlocal busy
        while True:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            with torch.cuda.device(device):
                cache.zero_()
                torch.cuda._sleep(busy)  # type: ignore[no-untyped-call]
                start.record()
                call()
                end.record()
                # whether the card got there before all had been issued, and waited for the rest
                waited = start.query()  # type: ignore[no-untyped-call]
            end.synchronize()
            if not waited or busy >= _BUSIEST:
                return float(start.elapsed_time(end)) / 1e3
            busy *= 4

    return gpu_clock


def take_turns(
    calls: Mapping[str, Call], seconds: float, *, fewest: int = 5, clock: Stopwatch = wall_clock
) -> dict[str, Timing]:
    """Time calls that have been made before: what compiles has compiled.

    >>> {name: timing.rounds for name, timing in take_turns({"sum": lambda: sum(range(10))}, 0.0, fewest=3).items()}
    {'sum': 3}

    Args:
        calls: by name; every round makes each once, in any order: each leaves its own data in the caches for the next.
        seconds: for all of them together.
        fewest: rounds, however long they take; two at least.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, dice = list(calls), random.Random(0)
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < fewest or time.perf_counter() < end:
        dice.shuffle(order)
        for name in order:
            times[name].append(clock(calls[name]))
        rounds += 1
    return {name: Timing.of(own) for name, own in times.items()}
