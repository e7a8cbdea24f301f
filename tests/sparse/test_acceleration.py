"""A model on its sparse weights, and back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_nm.sparse import Acceleration, accelerate
from lightning_nm.sparse.held import HeldWeight
from tests.sparse.models import Conv1D, accelerated, assert_near, backends_of, in_double, linear, sparse


class Branches(nn.Module):
    """A convolution, two Linears, and one Linear under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 16, 3)
        self.one = nn.Linear(16, 16)
        self.same = self.one
        self.dense = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(self.same(self.one(self.conv(x).mean((2, 3)))))


@pytest.fixture
def model() -> Branches:
    torch.manual_seed(0)
    model = sparse(Branches())
    nn.init.normal_(model.dense.weight)
    return model


X = torch.randn(3, 8, 6, 5, generator=torch.Generator().manual_seed(1))


def test_the_model_computes_what_it_did(model: Branches) -> None:
    """On sparse kernels wherever a weight is sparse."""
    expected = in_double(model, X)
    acceleration = accelerated(model)
    with torch.inference_mode():
        assert_near(model(X), expected)
    assert backends_of(acceleration) == {"conv.weight": {"cpu"}, "one.weight": {"cpu"}}


def test_restore_gives_the_very_same_parameters_back(model: Branches) -> None:
    """Whatever they have become in the meantime."""
    before = dict(model.named_parameters(remove_duplicate=False))
    acceleration = accelerated(model)
    assert isinstance(model.one.weight, HeldWeight)
    assert model.same.weight is model.one.weight
    acceleration.restore()
    after = dict(model.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys()
    assert all(after[name] is param for name, param in before.items())
    acceleration.restore()
    assert model.one.weight is before["one.weight"]


def test_nothing_happens_before_it_is_swapped_in(model: Branches) -> None:
    """Packing looks only."""
    before = dict(model.named_parameters())
    acceleration = Acceleration(model)
    acceleration.pack()
    assert acceleration.sparse == ["conv.weight", "one.weight"]
    assert all(model.get_parameter(name) is param for name, param in before.items())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_active_ends_whatever_happens(model: Branches, error: type[BaseException]) -> None:
    """The very same parameters after exceptions of any kind."""
    before = dict(model.named_parameters())
    acceleration = Acceleration(model, backend="cpu")
    acceleration.pack()

    def fail() -> None:
        with acceleration.active():
            assert isinstance(model.one.weight, HeldWeight)
            raise error

    with pytest.raises(error):
        fail()
    assert all(model.get_parameter(name) is param for name, param in before.items())


def test_active_within_active(model: Branches) -> None:
    """The outer one is as good as over; the results are right all the same."""
    before, expected = model.one.weight, in_double(model, X)
    acceleration = Acceleration(model, backend="cpu")
    acceleration.pack()
    with torch.no_grad(), acceleration.active():
        with acceleration.active():
            assert_near(model(X), expected)
        assert_near(model(X), expected)
    assert model.one.weight is before


def test_trifles_are_left_alone_when_active(model: Branches) -> None:
    """Where torch multiplied in less time than asking takes, nothing is asked next time."""
    acceleration = Acceleration(model)
    acceleration.pack()
    with torch.no_grad(), acceleration.active():
        model(X)
    tiny = acceleration.choices["one.weight"]
    assert tiny
    with acceleration.active():
        trifling = all(c.backend == "dense" and c.times["dense"] < 1e-4 for c in tiny)
        assert isinstance(model.one.weight, HeldWeight) != trifling


def test_a_second_acceleration_takes_over(model: Branches) -> None:
    """The first handle does nothing any more; the second goes back to the model's own parameters."""
    before, expected = model.one.weight, in_double(model, X)
    first, second = accelerated(model), accelerated(model)
    first.restore()
    with torch.no_grad():
        assert_near(model(X), expected)
    assert backends_of(second)["one.weight"] == {"cpu"}
    second.restore()
    assert model.one.weight is before


def test_layers_that_were_replaced_stay(model: Branches) -> None:
    """What somebody put into the model goes neither when it is swapped nor when it is restored."""
    acceleration = Acceleration(model, backend="cpu")
    acceleration.pack()
    model.one.weight = other = nn.Parameter(torch.randn(16, 16))
    expected = in_double(model, X)
    with torch.no_grad(), acceleration.active():
        assert model.one.weight is other
        assert_near(model(X), expected)
        model.conv = conv = nn.Conv2d(8, 16, 3)
    assert model.one.weight is other
    assert model.conv is conv
    assert type(conv.weight) is nn.Parameter


def test_packed_anew(model: Branches) -> None:
    """`pack` looks at the weights as they are, for those who write through ``.data``, which nobody can see."""
    acceleration = accelerated(model)
    with torch.no_grad():
        model(X)
    model.one.weight.data.mul_(3)
    acceleration.pack()
    acceleration.swap_in()
    expected = in_double(model, X)
    with torch.no_grad():
        assert_near(model(X), expected)


def test_copies_of_an_accelerated_model_are_plain(model: Branches) -> None:
    """They own their weights; shared ones stay shared."""
    accelerated(model)
    twin = copy.deepcopy(model)
    assert all(type(param) is nn.Parameter for param in twin.parameters())
    assert twin.one is twin.same
    assert torch.equal(twin.one.weight, model.one.weight)
    assert twin.one.weight.data_ptr() != model.one.weight.data_ptr()


def _parametrised() -> nn.Module:
    layer = linear()
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.remove(layer, "weight")
    return parametrizations.weight_norm(layer)


def _transposed() -> nn.Module:
    return sparse(nn.ConvTranspose2d(16, 16, 3))


def _shared_both_ways() -> nn.Module:
    model = nn.Sequential(linear(32, 32), Conv1D(32, 32))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_parametrised, "part of a parametrised weight"),
        (lambda: sparse(nn.LSTM(16, 16)), "LSTM multiplies inside torch"),
        (lambda: sparse(nn.GRUCell(16, 16)), "GRUCell multiplies inside torch"),
        (_transposed, "no kernel for transposed convolutions"),
        (_shared_both_ways, "shared by layers that sum over different dimensions"),
        (lambda: nn.Linear(8, 8, device="meta"), "it is on the meta device"),
        (lambda: nn.LazyLinear(8), "not initialised yet (a lazy layer)"),
        (lambda: nn.Embedding(8, 8), "a lookup table"),
        (lambda: nn.Bilinear(8, 8, 8), "a bilinear form"),
        (lambda: nn.Linear(8, 8), "100% of its weights are not zero"),
        (lambda: nn.ParameterList([torch.zeros(8, 8)]), "ParameterList is no known layer type"),
        (lambda: Mine(), "it is a Strange"),
    ],
)
def test_weights_that_are_left_to_torch(make: Any, reason: str) -> None:
    """Each has a line that says why."""
    rows = accelerate(make()).rows()
    assert any(reason in row.reason and row.backend == "dense" for row in rows)


class Strange(torch.Tensor):
    """A subclass of somebody else's, as quantised weights are."""


class Mine(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.weight = nn.Parameter(torch.zeros(8, 8).as_subclass(Strange))


def test_parametrised_and_pruned_layers_compute_what_they_did() -> None:
    """Weights that are made anew at each forward are not touched."""
    for make in (
        _parametrised,
        lambda: parametrizations.spectral_norm(linear()),
        lambda: prune.random_unstructured(linear(), "weight", 0.5),
        lambda: torch.nn.utils.weight_norm(linear()),
        lambda: parametrize.register_parametrization(linear(), "weight", nn.Tanh()),
    ):
        torch.manual_seed(0)
        layer = make().eval()
        x = torch.randn(3, 64)
        with torch.no_grad():
            expected = layer(x)
        acceleration = accelerated(layer)
        with torch.no_grad():
            assert_near(layer(x), expected)
        acceleration.restore()


def test_a_lazy_layer_beside_a_sparse_one() -> None:
    """It is made at the first input, as ever."""
    model = nn.Sequential(nn.LazyLinear(64), linear())
    accelerated(model)
    with torch.no_grad():
        assert model(torch.randn(2, 5)).shape == (2, 32)


class Tied(nn.Module):
    """A language model's head, which is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(64, 32), nn.Linear(32, 64, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


def test_a_head_tied_to_the_embedding() -> None:
    """The head multiplies by sparse kernels, the embedding looks up dense rows, and they stay one parameter."""
    model = Tied()
    with torch.no_grad():
        model.head.weight.mul_(torch.arange(32) % 4 < 2)
    before, expected = model.head.weight, in_double(model, torch.arange(9))
    acceleration = accelerated(model)
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        assert_near(model(torch.arange(9)), expected)
    assert backends_of(acceleration) == {"embed.weight": {"cpu"}}
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.embed.weight
    acceleration.restore()
    assert model.head.weight is model.embed.weight is before


def test_frozen_weights_need_no_no_grad() -> None:
    """Where nobody asks for gradients, none are in the way."""
    model, x = linear().requires_grad_(False), torch.randn(3, 64)
    acceleration = accelerated(model)
    assert_near(model(x), in_double(model, x))
    assert backends_of(acceleration) == {"weight": {"cpu"}}


def test_a_model_without_sparse_weights() -> None:
    """Stays as it is."""
    model = nn.Linear(8, 8)
    weight = model.weight
    acceleration = accelerate(model)
    assert acceleration.sparse == []
    assert model.weight is weight


def test_an_unknown_backend() -> None:
    """Is refused with the names that there are."""
    with pytest.raises(ValueError, match="no backend 'gpu'; there are auto, auto_in_graph, dense, onednn, cpu"):
        accelerate(nn.Linear(8, 8), backend="gpu")


def test_the_report(model: Branches) -> None:
    """A line for every matrix and kernel: used, not used yet, dense with the reason, met with gradients."""
    acceleration = accelerated(model)
    assert "no linear layer, convolution or attention has used it yet" in acceleration.report()
    with torch.no_grad():
        model(X)
    model(X)
    rows = [(row.name, row.shape, row.pattern, row.backend) for row in acceleration.rows()]
    assert rows == [
        ("conv.weight", (16, 8, 3, 3), "2:4", "cpu"),
        ("conv.weight", (16, 8, 3, 3), "2:4", "dense"),
        ("one.weight", (16, 16), "2:4", "cpu"),
        ("one.weight", (16, 16), "2:4", "dense"),
        ("dense.weight", (4, 16), "-", "dense"),
    ]
    assert acceleration.rows()[0].reason == "x [3, 8, 6, 5] float32: asked for"
    assert "gradients were on: use torch.no_grad()" in acceleration.rows()[1].reason
    assert "100% of its weights are not zero" in acceleration.report().splitlines()[-1]
