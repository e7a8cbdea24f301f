"""What a section of the gate is: tasks, each of which finds rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu_gate.sizes import Sizes


class Row(NamedTuple):
    """What was found."""

    cells: dict[str, str]
    """By column, for people."""
    record: dict[str, Any]
    """As JSON holds it; times in seconds."""
    fault: str = ""
    """What is wrong with it."""


class Task(NamedTuple):
    """Is run if there is time left, and named if not."""

    name: str
    rows: Callable[[float], Iterable[Row]]
    """Of the time (`time.time`) at which it should end."""


class OutOfTime(Exception):
    """Raised by a task that began and found no time to end: it was not reached, which is no fault."""


class Section(NamedTuple):
    """Runs in processes of its own, so that a broken one breaks no other."""

    name: str
    title: str
    reading: str
    """What the numbers mean."""
    minutes: float
    """Its share of the time; what it leaves goes to those after it."""
    tasks: Callable[[Sizes], list[Task]]
    """To list them touches no device."""


def fault_of(error: BaseException) -> str:
    """In one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def far(out: Tensor, dense: Tensor, exact: Tensor) -> str:
    """How a result is further from the exact one than the dense product of its own dtype is; "" where it is not."""
    if out.shape != exact.shape:
        return f"shape {list(out.shape)}, not {list(exact.shape)}"
    mine, theirs = ((each.float() - exact).abs() for each in (out, dense))
    typical = float(mine.square().mean().sqrt()), 2 * float(theirs.square().mean().sqrt())
    largest = float(mine.max()), 4 * float(theirs.max())
    floor = 1e-5 * float(exact.abs().max()) + 1e-30
    if not (typical[0] <= typical[1] + floor and largest[0] <= largest[1] + floor):  # NaN too
        dense_is = f"dense by {typical[1] / 2:.1e} (at most {largest[1] / 4:.1e})"
        return f"off by {typical[0]:.1e} (at most {largest[0]:.1e}), {dense_is}"
    return ""


def synchronize(device: str) -> None:
    """Raise what a kernel did wrong and nobody has yet asked for."""
    if device == "cuda":
        torch.cuda.synchronize()


def microseconds(timing: Any) -> str:
    """Median, first and third quartile."""
    return f"{timing.median * 1e6:.1f} ({timing.low * 1e6:.1f}-{timing.high * 1e6:.1f})"


def milliseconds(timing: Any) -> str:
    """Median, first and third quartile."""
    return f"{timing.median * 1e3:.2f} ({timing.low * 1e3:.2f}-{timing.high * 1e3:.2f})"
