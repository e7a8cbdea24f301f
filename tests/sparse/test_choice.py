"""The fastest of those that are right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_nm.sparse import choice
from lightning_nm.sparse.choice import choose
from lightning_nm.sparse.timing import wall_clock

CPU = torch.device("cpu")
RIGHT = torch.arange(6.0).view(2, 3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how many microseconds each takes."""

    def takes(**microseconds: float) -> None:
        monkeypatch.setattr(choice, "_fastest", lambda runs, _: {name: microseconds[name] * 1e-6 for name in runs})

    return takes


def same(*names: str) -> dict[str, Callable[[], Tensor]]:
    return dict.fromkeys(names, RIGHT.clone)


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"dense": 1000, "onednn": 900, "cpu": 500}, "cpu"),
        ({"dense": 1000, "onednn": 500, "cpu": 480}, "onednn"),
        ({"dense": 1000, "onednn": 960, "cpu": 955}, "dense"),
        ({"dense": 1000, "onednn": 960, "cpu": 930}, "cpu"),
        ({"dense": 20, "onednn": 15, "cpu": 11}, "dense"),
    ],
)
def test_dense_wins_ties(clock: Callable[..., None], times: dict[str, float], chosen: str) -> None:
    """A share of the time, and some microseconds, must be gained."""
    clock(**times)
    made = choose(same(*times), CPU)
    assert made.backend == chosen
    fastest = min(times, key=lambda name: times[name])
    assert made.reason == ("the fastest" if chosen == fastest else f"{fastest} gains less than 5% and 10 us")


def test_on_a_gpu_microseconds_count(clock: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock measures what a network sees."""
    clock(dense=20, gathered=11)
    monkeypatch.setattr(choice, "stopwatch", lambda device: wall_clock)
    assert choose(same("dense", "gathered"), torch.device("cuda")).backend == "gathered"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda: RIGHT + 0.01, "the fastest; cpu disagrees with dense"),
        (lambda: RIGHT[:1], "the fastest; cpu disagrees with dense"),
        (lambda: RIGHT.double(), "the fastest; cpu disagrees with dense"),
        (lambda: RIGHT * torch.nan, "the fastest; cpu disagrees with dense"),
        (lambda: 1 / 0, "the fastest; cpu failed with ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_is_named_and_never_chosen(
    clock: Callable[..., None], wrong: Callable[[], Tensor], reason: str
) -> None:
    """However fast it is."""
    clock(dense=1000, cpu=1)
    made = choose({"cpu": wrong, **same("dense")}, CPU)
    assert (made.backend, made.reason) == ("dense", reason)


def test_sums_beyond_half_precision_may_differ() -> None:
    """What is infinite in the dense product is no measure of another."""
    beyond = torch.tensor([torch.inf, 2.0], dtype=torch.float16)
    assert choice._agree(torch.tensor([65504.0, 2.0], dtype=torch.float16), beyond)
    assert not choice._agree(torch.tensor([65504.0, 3.0], dtype=torch.float16), beyond)


def test_what_the_clock_measures() -> None:
    """The least of several runs of each, in seconds."""
    calls = {"a": 0, "b": 0}

    def run(name: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            calls[name] += 1
            return torch.empty(0)

        return call

    times = choice._fastest({name: run(name) for name in calls}, wall_clock)
    assert calls["a"] == calls["b"] > 1
    assert all(0 < seconds < 1 for seconds in times.values())
