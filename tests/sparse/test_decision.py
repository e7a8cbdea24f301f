"""Where an answer comes from: the table of this machine, the prior, or a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM
from lightning_nm.sparse import accelerate, choice, decision, prior, tuned
from lightning_nm.sparse.backends import BACKENDS, DenseOperand
from lightning_nm.sparse.decision import AUTO, IN_GRAPH
from lightning_nm.sparse.dispatch import Dispatched
from tests.sparse.models import assert_near, sparse, sparse_weight

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decision.forget()
    yield
    decision.forget()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Who was measured, each time; the CPU's kernels are the fastest."""
    calls: list[list[str]] = []

    def fastest(runs: dict[str, Callable[[], Tensor]], clock: object) -> dict[str, float]:
        calls.append(list(runs))
        return {name: 1e-5 if name == "cpu" else 1e-3 for name in runs}

    monkeypatch.setattr(choice, "_fastest", fastest)
    return calls


def weight(backend: str = AUTO) -> Dispatched:
    return Dispatched(sparse_weight((32, 64)), NM(2, 4), 1, backend)


def chosen(held: Dispatched, x: Tensor = X, bias: Tensor | None = None) -> choice.Choice:
    assert_near(held.product(x, bias, None), torch.nn.functional.linear(x, held.weight, bias))
    return held.made()[-1]


def test_what_was_tuned_is_not_measured(measured: list[list[str]]) -> None:
    """In any later process, with a bias and without, at all sizes up to the next power of two; others are."""
    weight().tune(X, None, None, 0.0)
    decision.forget()
    for x, bias in ((X, None), (X[:3], torch.randn(32))):
        assert "tuned on 20" in chosen(weight(), x, bias).reason
    assert not measured
    assert chosen(weight(), X[:2]).reason == "the fastest"
    assert measured == [["dense", "onednn", "cpu"]]


def test_a_tuned_dense_product_packs_nothing(monkeypatch: pytest.MonkeyPatch, measured: list[list[str]]) -> None:
    """Where dense won, nothing else is made again."""
    monkeypatch.setattr(choice, "take_turns", lambda runs, seconds, clock: _timings(runs))
    weight().tune(X, None, None, 0.0)
    decision.forget()
    monkeypatch.setattr(BACKENDS["cpu"], "hold", lambda *given: pytest.fail("it was packed"))
    assert chosen(weight()).backend == "dense"
    assert not measured


def _timings(runs: dict[str, Any]) -> dict[str, Any]:
    from lightning_nm.sparse.timing import Timing

    return {name: Timing.of([1e-5, 1e-5] if name == "dense" else [1.0, 1.0]) for name in runs}


def test_tuned_choices_are_checked(monkeypatch: pytest.MonkeyPatch, measured: list[list[str]]) -> None:
    """One whose product is wrong today is measured anew, and named: a table is not trusted."""
    product = weight()._question(X, None, None, weight()._key(X, None, None))._product
    tuned.write(choice.Choice("cpu", {"cpu": 1e-9}, ""), torch.device("cpu"), product)
    monkeypatch.setattr(BACKENDS["cpu"], "hold", lambda weight, pattern, dim: DenseOperand(weight * 1.5, dim))
    made = chosen(weight())
    assert made.backend != "cpu"
    assert "cpu disagrees with dense" in made.reason
    assert measured == [["dense", "onednn"]]


def test_what_was_tuned_is_given_back(measured: list[list[str]]) -> None:
    """The choice that `tune` made serves the weight itself."""
    held = weight()
    held.tune(X, None, None, 0.0)
    assert len(held.made()) == 1
    assert held.made()[0].size == "x [4, 64] float32"
    assert not measured


def test_in_a_graph_only_the_card_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the time to issue a call; otherwise the longer of both."""
    clocks: list[object] = []

    def fastest(runs: dict[str, Callable[[], Tensor]], clock: object) -> dict[str, float]:
        clocks.append(clock)
        return dict.fromkeys(runs, 1.0)

    card = object()
    monkeypatch.setattr(choice, "_fastest", fastest)
    monkeypatch.setattr(choice, "stopwatch", lambda device: card)
    monkeypatch.setattr(choice, "_clock", lambda device: None)
    for backend in (AUTO, IN_GRAPH):
        chosen(weight(backend))
    assert clocks == [None, card]


def test_nothing_is_kept_of_a_capture(monkeypatch: pytest.MonkeyPatch, measured: list[list[str]]) -> None:
    """While a CUDA graph is captured torch multiplies; the next call outside asks anew, with the same inputs."""
    model = sparse(torch.nn.Linear(64, 32))
    accelerated = accelerate(model)
    with monkeypatch.context() as capture, torch.inference_mode():
        capture.setattr(torch.Tensor, "is_cuda", True)
        capture.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        model(X)
    [made] = accelerated.choices["weight"]
    assert made.backend == "dense"
    assert "a CUDA graph was being captured" in made.reason
    with torch.inference_mode():
        model(X)
    [made] = accelerated.choices["weight"]
    assert made.backend == "cpu"
    assert len(measured) == 1


def test_without_memory_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fits runs, dense; other weights are asked for all the same."""

    def choose(*given: object, **options: object) -> choice.Choice:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as scarce:
        scarce.setattr(decision, "choose", choose)
        assert chosen(weight()).reason == "there was no memory to pack and measure others"
    assert chosen(weight()).times


def on_a_card(x: Tensor, weight: Tensor, convolution: Convolution | None = None) -> decision.Question:
    """As it would be asked there, as far as meta tensors go."""
    question = decision.Question(
        weight, NM(2, 4), 1, AUTO, lambda name: DenseOperand(weight, 1), x, None, convolution, ()
    )
    question.__dict__["_refusals"] = {"dense": None, "gathered": None, "bitplane": None, "cusparselt": "too large"}
    return question


class _Cuda(torch.Tensor):
    """A tensor that says that it is on a card."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")


def test_on_a_card_those_without_hope_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prior refuses them, and the reason of the choice says so; those with some are measured."""
    given: list[list[str]] = []

    def choose(candidates: dict[str, object], device: torch.device, **options: object) -> choice.Choice:
        given.append(list(candidates))
        return choice.Choice("bitplane", {}, "the fastest")

    monkeypatch.setattr(decision, "choose", choose)
    large = torch.empty(14336, 4096, dtype=torch.bfloat16).as_subclass(_Cuda)
    made = on_a_card(torch.empty(64, 4096), large)._measured_now()
    assert given == [["dense", "bitplane"]]
    assert made.reason.startswith("the fastest; gathered: 0.")
    assert made.reason.endswith("of dense expected, not tried")
    small = torch.empty(64, 64, dtype=torch.bfloat16).as_subclass(_Cuda)
    made = on_a_card(torch.empty(64, 64), small)._measured_now()
    assert made.backend == "dense"
    assert made.reason.count("not tried") == 2
    assert "cusparselt: too large" in made.reason
    assert len(given) == 1


def test_pixels_count_as_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the result, after the stride."""
    asked: list[int] = []
    monkeypatch.setattr(prior, "why_not", lambda name, pattern, weights, rows: asked.append(rows))
    filters = torch.empty(32, 16, 3, 3).as_subclass(_Cuda)
    convolution = Convolution((3, 3), (2, 2), (1, 1), (1, 1), 1)
    on_a_card(torch.empty(5, 16, 9, 7), filters, convolution)._hopeless()
    assert set(asked) == {5 * 5 * 4}
