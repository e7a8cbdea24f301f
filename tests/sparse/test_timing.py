"""How calls are timed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lightning_nm.sparse.timing import Timing, stopwatch, take_turns, wall_clock


def test_calls_take_turns_for_as_many_rounds_as_asked():
    """Each once in every round, now before the other, now after it, however little time there is."""
    made: list[str] = []
    timings = take_turns({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, 0.0, fewest=20)
    assert {tuple(made[at : at + 2]) for at in range(0, 40, 2)} == {("a", "b"), ("b", "a")}
    assert {name: timing.rounds for name, timing in timings.items()} == {"a": 20, "b": 20}


def test_time_is_used_up():
    """More rounds than the fewest, where there is time for them."""
    assert take_turns({"a": lambda: None}, 0.02, fewest=2)["a"].rounds > 10


def test_median_and_quartiles():
    """One slow round moves neither."""
    clock = iter([5.0, 1.0, 2.0, 3.0, 900.0]).__next__
    timing = take_turns({"a": lambda: None}, 0.0, fewest=5, clock=lambda call: clock())["a"]
    assert timing == Timing(median=3.0, low=2.0, high=5.0, least=1.0, rounds=5)


def test_the_wall_clock_runs_the_call():
    """Its seconds are those of the call."""
    made: list[int] = []
    assert 0 < stopwatch(torch.device("cpu"))(lambda: made.append(1)) < 1
    assert made == [1]
    assert stopwatch(torch.device("cpu")) is wall_clock


class Card:
    """One on which a call takes 5 ms, and whose wait is over before the call is issued, unless it waits for long."""

    def __init__(self, enough: int) -> None:
        self.enough, self.asked = enough, []

    def events(self, enable_timing: bool) -> Card:
        return self

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return self.asked[-1] < self.enough

    def elapsed_time(self, end: Card) -> float:
        return 5.0


@pytest.mark.parametrize(("enough", "asked"), [(1, 2), (1_000_000, 4), (10**12, 5)])
def test_a_card_is_busy_until_a_call_has_been_issued(monkeypatch: pytest.MonkeyPatch, enough: int, asked: int) -> None:
    """Else its clock would count the host's time: it is kept busy for longer, and from then on; there is an end."""
    card = Card(enough)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(L2_cache_size=8))
    monkeypatch.setattr(torch, "empty", lambda *size, dtype, device: torch.zeros(*size, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", card.events)
    monkeypatch.setattr(torch.cuda, "_sleep", card.asked.append)
    clock = stopwatch(torch.device("cuda"))
    assert [clock(lambda: None) for _ in range(2)] == [0.005, 0.005]
    assert len(card.asked) == asked
    assert card.asked == sorted(card.asked)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_clock_of_a_gpu():
    """A larger product takes longer, by its own clock."""
    clock = stopwatch(torch.device("cuda"))
    small, large = (torch.randn(n, n, device="cuda") for n in (64, 8192))
    timings = take_turns({"small": lambda: small @ small, "large": lambda: large @ large}, 0.0, clock=clock)
    assert timings["large"].low > timings["small"].high > 0
