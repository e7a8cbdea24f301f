"""Who multiplies: the fastest that is right, dense ones where nothing is gained."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns import NM
from lightning_nm.sparse import backends, choice, decision
from lightning_nm.sparse.backends import PrepackedOperand
from lightning_nm.sparse.dispatch import Dispatched, dispatched
from tests.sparse.models import assert_near, sparse_weight

Clock = Callable[..., None]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Say how many microseconds each backend takes; ``clock.calls`` of them were measured."""

    def takes(**microseconds: float) -> None:
        def fastest(runs: dict[str, Callable[[], Tensor]], clock: object) -> dict[str, float]:
            takes.calls += 1  # type: ignore[attr-defined]
            return {name: microseconds[name] * 1e-6 for name in runs}

        monkeypatch.setattr(choice, "_fastest", fastest)

    takes.calls = 0  # type: ignore[attr-defined]
    decision.forget()
    yield takes
    decision.forget()


def weight(backend: str = "auto") -> Dispatched:
    return Dispatched(sparse_weight((32, 64)), NM(2, 4), 1, backend)


@pytest.mark.parametrize(
    ("times", "chosen", "reason"),
    [
        ({"dense": 100, "onednn": 90, "cpu": 50}, "cpu", "the fastest"),
        ({"dense": 100, "onednn": 50, "cpu": 90}, "onednn", "the fastest"),
        ({"dense": 50, "onednn": 90, "cpu": 100}, "dense", "the fastest"),
        ({"dense": 100, "onednn": 100, "cpu": 100}, "dense", "the fastest"),
        ({"dense": 1000, "onednn": 1200, "cpu": 960}, "dense", "cpu gains less than 5% and 10 us"),
        ({"dense": 1000, "onednn": 800, "cpu": 770}, "onednn", "cpu gains less than 5% and 10 us"),
        ({"dense": 1000, "onednn": 960, "cpu": 930}, "cpu", "the fastest"),
        ({"dense": 30, "onednn": 50, "cpu": 21}, "dense", "cpu gains less than 5% and 10 us"),
    ],
)
def test_the_fastest(clock: Clock, times: dict[str, float], chosen: str, reason: str) -> None:
    """Promise 6: "auto" takes nothing slower than dense, and dense wins ties; the reason and the times are told."""
    clock(**times)
    held = weight()
    held.product(torch.randn(4, 64), None, None)
    [made] = held.made()
    assert (made.backend, made.reason) == (chosen, reason)
    for name, microseconds in times.items():
        assert f"{name} {microseconds}" in made.why()
    assert "x [4, 64] float32" in made.why()


@pytest.mark.parametrize("wrong", ["numbers", "shape", "dtype", "nan"])
def test_a_backend_that_is_wrong_is_never_chosen(clock: Clock, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """However fast; the report names it."""
    spoil = {
        "numbers": lambda out: out * 1.01,
        "shape": lambda out: out[:-1],
        "dtype": lambda out: out.double(),
        "nan": lambda out: out * torch.nan,
    }[wrong]
    linear = PrepackedOperand.linear
    monkeypatch.setattr(PrepackedOperand, "linear", lambda self, x, bias: spoil(linear(self, x, bias)))
    clock(dense=100, onednn=1, cpu=200)
    held, x = weight(), torch.randn(4, 64)
    assert_near(held.product(x, None, None), x @ held.weight.T)
    [made] = held.made()
    assert (made.backend, made.reason) == ("dense", "the fastest; onednn disagrees with dense")


@pytest.mark.parametrize("when", ["hold", "linear"])
def test_a_backend_that_fails_is_never_chosen(clock: Clock, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """To the user's run nothing happens; the report tells of it."""

    def fail(*args: object) -> Tensor:
        raise RuntimeError("no such instruction\nat 0x0")

    monkeypatch.setattr(*((backends.Prepacked, "hold") if when == "hold" else (PrepackedOperand, "linear")), fail)
    clock(dense=100, onednn=1, cpu=200)
    held, x = weight(), torch.randn(4, 64)
    assert_near(held.product(x, None, None), x @ held.weight.T)
    [made] = held.made()
    assert made.backend == "dense"
    assert made.reason == "the fastest; onednn failed with RuntimeError: no such instruction"


def test_a_first_input_that_is_not_finite(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends are held against each other all the same."""
    linear = PrepackedOperand.linear
    monkeypatch.setattr(PrepackedOperand, "linear", lambda self, x, bias: 2 * linear(self, x, bias))
    clock(dense=100, onednn=1, cpu=200)
    held, x = weight(), torch.randn(4, 64)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    held.product(x, None, None)
    assert held.made()[0].backend == "dense"


def test_layers_alike_share_a_measurement(clock: Clock) -> None:
    """So does the same layer at the next evaluation; another pattern, dtype or number of threads does not."""
    clock(dense=100, onednn=100, cpu=1)
    x = torch.randn(4, 64)
    for _ in range(3):
        assert weight().product(x, None, None).shape == (4, 32)
    assert clock.calls == 1  # type: ignore[attr-defined]
    Dispatched(sparse_weight((32, 64), "1:4"), NM(1, 4), 1).product(x, None, None)
    assert clock.calls == 2  # type: ignore[attr-defined]
    weight().product(x, torch.randn(32), None)
    assert clock.calls == 3  # type: ignore[attr-defined]


def test_sizes_up_to_the_next_power_of_two_share_a_choice(clock: Clock) -> None:
    """Batches of 5 to 8 are measured once; 9 anew."""
    clock(dense=100, onednn=100, cpu=1)
    held = weight()
    for batch in (5, 6, 8, 9):
        held.product(torch.randn(batch, 64), None, None)
    assert [made.size for made in held.made()] == ["x [5, 64] float32", "x [9, 64] float32"]


@pytest.mark.parametrize("backend", ["dense", "onednn", "cpu"])
def test_a_backend_that_was_asked_for(clock: Clock, backend: str) -> None:
    """Is taken wherever it can, without measuring; elsewhere dense, with the reason."""
    held = weight(backend)
    held.product(torch.randn(4, 64), None, None)
    assert [(c.backend, c.reason) for c in held.made()] == [(backend, "asked for")]
    held = Dispatched(held.weight.double(), NM(2, 4), 1, backend)
    x = torch.randn(4, 64, dtype=torch.float64)
    assert_near(held.product(x, None, None), x @ held.weight.T)
    assert held.made()[0].backend == "dense"
    assert clock.calls == 0  # type: ignore[attr-defined]


def test_an_empty_batch() -> None:
    """Is nothing to measure."""
    held = weight()
    assert held.product(torch.randn(0, 64), None, None).shape == (0, 32)
    assert held.made()[0].reason == "there is nothing to multiply"


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_without_numba(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """Promise: speed is lost, function is not, and the report says why."""
    monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    decision.forget()
    held, x = weight(backend), torch.randn(4, 64, dtype=torch.bfloat16)
    held = held.cast(torch.bfloat16)
    assert_near(held.product(x, None, None), x @ held.weight.T)
    [made] = held.made()
    assert made.backend == "dense"
    assert "numba is not there or does not import" in made.reason


def test_a_weight_that_is_written_to_is_packed_anew() -> None:
    """In place, under any mode; what it obeys is told again, and a weight that obeys nothing runs dense."""
    held, x = weight("cpu"), torch.randn(4, 64)
    held.product(x, None, None)
    held.weight.mul_(2)
    assert_near(held.current().product(x, None, None), x @ held.weight.T)
    assert held.made()[0].backend == "cpu"
    with torch.inference_mode():
        held.weight.copy_(sparse_weight((32, 64), "1:4", seed=1))
    assert_near(held.current().product(x, None, None), x @ held.weight.T)
    assert str(held.pattern) == "1:4"
    held.weight.add_(1)
    assert_near(held.current().product(x, None, None), x @ held.weight.T)
    assert [(c.backend, c.reason) for c in held.made()] == [("dense", "100% of its weights are not zero")]


def test_weights_are_found_by_where_they_lie() -> None:
    """For compiled graphs; not by an address that somebody else has by now, nor by another view of the memory."""
    held = weight()
    assert dispatched(held.weight) is held
    assert dispatched(held.weight.view(64, 32)) is None
    assert dispatched(held.weight.clone()) is None
    before = held.weight.detach()
    held.weight.data = sparse_weight((32, 64), seed=1)
    assert dispatched(before) is None


def test_nothing_is_kept_of_weights_that_are_gone() -> None:
    """What was packed goes with its model."""
    held = weight("cpu")
    held.product(torch.randn(4, 64), None, None)
    there = held.weight
    del held
    assert dispatched(there) is None


def test_parts_of_a_stacked_weight() -> None:
    """Rows in no pattern run dense, and say so; they are looked at once."""
    both = torch.cat([sparse_weight((32, 64)), torch.ones(32, 64)])
    held, x = Dispatched(both, NM(2, 4), 1, "cpu"), torch.randn(4, 64)
    for first, expected in ((0, "cpu"), (32, "dense")):
        part = held.rows(first, first + 32)
        assert_near(part.product(x, None, None), x @ both[first : first + 32].T)
        assert part.made()[0].backend == expected
        assert held.rows(first, first + 32) is part


def test_trifles() -> None:
    """Only what torch did each time, in less than it takes to ask."""
    held = weight("dense")
    assert not held.trifling
    key = ("size",)
    held.choices[key] = choice.Choice("dense", {"dense": 1e-5}, "the fastest")
    assert held.trifling
    held.choices["another",] = choice.Choice("dense", {"dense": 1.0}, "the fastest")
    assert not held.trifling


def test_every_backend_has_its_name() -> None:
    """Dense is the first: it goes before whatever is as fast."""
    assert [backend.name for backend in backends.BACKENDS.values()] == list(backends.BACKENDS)
    assert next(iter(backends.BACKENDS)) == "dense"
