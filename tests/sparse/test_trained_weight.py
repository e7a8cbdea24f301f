"""Who multiplies by a weight in training, and when it is packed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

from lightning_nm.patterns import NM, parse
from lightning_nm.sparse import BACKENDS, choice
from lightning_nm.sparse.backends import Cpu
from lightning_nm.sparse.trained_weight import TrainedWeight
from lightning_nm.training import Selected
from tests.sparse.models import sparse_weight

X = torch.randn(8, 64)


def trained(pattern: str = "2:4T", backend: str = "auto", shape: tuple[int, int] = (32, 64)) -> TrainedWeight:
    weight = nn.Parameter(sparse_weight(shape, pattern))
    return TrainedWeight(Selected("fc.weight", weight, parse(pattern), 1), backend, {})


def made(weight: TrainedWeight) -> list[tuple[str, str]]:
    return [(choice.backend, choice.reason) for choice in weight.choices.values()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[set[str]]]:
    """Say how many microseconds each takes; gives what was measured."""

    def takes(**microseconds: float) -> list[set[str]]:
        measured: list[set[str]] = []

        def fastest(runs: dict[str, Any], _: object) -> dict[str, float]:
            measured.append(set(runs))
            return {name: microseconds[name] * 1e-6 for name in runs}

        monkeypatch.setattr(choice, "_fastest", fastest)
        return measured

    return takes


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The dimension of each weight that was packed."""
    along: list[int] = []
    hold = Cpu.hold_known

    def hold_known(self: Cpu, weight: torch.Tensor, pattern: NM, dim: int) -> Any:
        along.append(dim)
        return hold(self, weight, pattern, dim)

    monkeypatch.setattr(Cpu, "hold_known", hold_known)
    return along


def test_both_products_are_chosen_apart(clock: Callable[..., list[set[str]]]) -> None:
    """Each by its own measurement, dense among the candidates; x without a gradient needs the first only."""
    measured = clock(dense=1000, cpu=500)
    weight = trained()
    out = weight.multiply(X, None, X.dtype)
    assert out is not None
    assert made(weight) == [("cpu", "the fastest")]
    weight.multiply(X.clone().requires_grad_(), None, X.dtype)
    assert made(weight) == 2 * [("cpu", "the fastest")]
    assert measured == 2 * [{"dense", "cpu"}]
    sizes = [choice.size for choice in weight.choices.values()]
    assert sizes == ["x [8, 64] float32", "x's gradient, of [8, 32] float32"]


def test_dense_wins_ties(clock: Callable[..., list[set[str]]], packings: list[int]) -> None:
    """Then torch multiplies; packing is part of what is measured."""
    clock(dense=1000, cpu=990)
    weight = trained()
    assert weight.multiply(X.clone().requires_grad_(), None, X.dtype) is None
    assert made(weight) == 2 * [("dense", "cpu gains less than 5% and 10 us")]
    assert packings == [1, 0]


def test_weights_alike_share_a_measurement(clock: Callable[..., list[set[str]]]) -> None:
    """And sizes up to the next power of two a choice."""
    measured, shared = clock(dense=1000, cpu=500), {}
    for _ in range(2):
        weight = trained()
        weight._measured = shared
        for rows in (8, 5, 9):
            weight.multiply(torch.randn(rows, 64), None, X.dtype)
        assert len(weight.choices) == 2
    assert len(measured) == 2


def test_packed_once_for_each_update(packings: list[int]) -> None:
    """However many batches; forward, and the transposed weight when a gradient asks for it."""
    weight = trained(backend="cpu")
    for update in range(1, 4):
        for _ in range(3):
            out = weight.multiply(X.clone().requires_grad_(), None, X.dtype)
            assert out is not None
            out.sum().backward()
        assert packings == [1, 0] * update
        with torch.no_grad():
            weight.weight.param.mul_(0.5)


def test_whoever_keeps_a_loss_keeps_no_packed_weights() -> None:
    """Its graph lives as long as it does: of all steps' packed weights there is the last one's."""
    weight = trained(backend="cpu")
    losses, packed = [], []
    for _ in range(4):
        out = weight.multiply(X.clone().requires_grad_(), None, X.dtype)
        assert out is not None
        losses.append(out.sum())
        losses[-1].backward()
        packed += [ref(each) for each in weight._packed.values()]
        with torch.no_grad():
            weight.weight.param.mul_(0.5)
    gc.collect()
    assert [each() is not None for each in packed] == [False, False, False, True]


def test_a_row_wise_pattern_has_the_forward_product_only() -> None:
    """The transposed weight is not N:M."""
    weight = trained("2:4", "cpu")
    out = weight.multiply(X.clone().requires_grad_(), None, X.dtype)
    assert out is not None
    out.sum().backward()
    assert made(weight) == [
        ("cpu", "asked for"),
        ("dense", "the transposed weight is not 2:4: its masks are not transposable"),
    ]


def test_a_weight_that_breaks_its_pattern_is_dense() -> None:
    """Whoever wrote to it; and sparse again when it obeys."""
    weight = trained(backend="cpu")
    before = weight.weight.param.detach().clone()
    assert weight.multiply(X, None, X.dtype) is not None
    with torch.no_grad():
        weight.weight.param.add_(1.0)
    assert weight.multiply(X, None, X.dtype) is None
    with torch.no_grad():
        weight.weight.param.copy_(before)
    assert weight.multiply(X, None, X.dtype) is not None


@pytest.mark.parametrize(
    ("pattern", "backend", "dtype", "reason"),
    [
        ("unstructured@0.5", "auto", torch.float32, "no backend packs unstructured@0.5 weights"),
        ("2:4T", "gathered", torch.float32, "gathered packs too slowly for training, or not here"),
        ("2:4T", "dense", torch.float32, "asked for"),
        ("2:4T", "auto", torch.float64, "cpu: no kernel for torch.float64"),
        ("2:4T", "cpu", torch.float64, "no kernel for torch.float64"),
    ],
)
def test_what_is_left_to_torch(pattern: str, backend: str, dtype: torch.dtype, reason: str) -> None:
    """With the reason."""
    weight = nn.Parameter(torch.where(parse(pattern).mask(dense := torch.randn(32, 64)), dense, 0.0))
    left = TrainedWeight(Selected("fc.weight", weight, parse(pattern), 1), backend, {})
    assert left.multiply(X.to(dtype), None, dtype) is None
    assert made(left) == [("dense", reason)]


def test_nothing_to_multiply() -> None:
    """Empty batches are torch's, and no size that was met."""
    weight = trained(backend="cpu")
    assert weight.multiply(torch.randn(0, 64), None, X.dtype) is None
    assert not weight.choices


def test_measuring_leaves_random_numbers_alone() -> None:
    """A run draws the numbers that it draws without."""
    x, bias, before = X.clone().requires_grad_(), torch.randn(32), torch.get_rng_state()
    trained().multiply(x, bias, X.dtype)
    assert before.equal(torch.get_rng_state())


def test_who_packs_fast() -> None:
    """Those that reorder for minutes would be measured at every update."""
    assert {name for name, backend in BACKENDS.items() if backend.packs_fast} == {"cpu", "cusparselt"}
