"""Which channels may move, and that the network computes the same when all of them do."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm.conversion.rearrangement.flow import TOLERANCE, Flow, _apart
from lightning_nm.conversion.rearrangement.spaces import Moves, Space
from tests.conversion.rearrangement.networks import NETWORKS, network, outputs, random_values


def shuffled(flow: Flow, seed: int = 0) -> list[tuple[Space, Tensor]]:
    """Every space that may move, in a random order that leaves few channels in place."""
    rng = torch.Generator().manual_seed(seed)
    return [(space, torch.randperm(space.size, generator=rng).roll(1)) for space in flow.spaces if not space.stays]


def permuted(model: nn.Module, orders: list[tuple[Space, Tensor]]) -> nn.Module:
    model = copy.deepcopy(model)
    moves = Moves(orders)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            tensor.copy_(moves.apply(name, tensor))
    return model


def assert_same_function(model: nn.Module, x: Tensor, orders: list[tuple[Space, Tensor]]) -> None:
    """Compared outside of everything that found the spaces."""
    after = permuted(model, orders)
    for training in (False, True):
        for a, b in zip(outputs(model, x, training), outputs(after, x, training)):
            assert float((a - b).abs().max()) <= TOLERANCE * float(a.abs().max())


def moving(flow: Flow) -> set[str]:
    return {name for space in flow.spaces if not space.stays for name in space.weights()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_space_moves_and_the_function_stays(name: str) -> None:
    """All spaces at once, at random; the ones that matter are among them, and heads, inputs, outputs are not."""
    model, x = network(name)
    flow = Flow(model, x)
    orders = shuffled(flow)
    assert not flow.notes
    assert NETWORKS[name].moves <= moving(flow)
    assert not NETWORKS[name].stays & moving(flow)
    assert flow.difference(orders) <= TOLERANCE
    assert_same_function(model, x, orders)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_move_is_noticed(name: str) -> None:
    """A space that forgets one of its sites changes the output: comparing is no formality."""
    model, x = network(name)
    flow = Flow(model, x)
    space = next(s for s in flow.spaces if not s.stays and len(s.sites) > 1 and s.weights())
    part = Space(space.sites[1:], space.size)
    with pytest.raises(RuntimeError, match="changed an output by"):
        flow.verify([(part, torch.arange(space.size).roll(1))])


def test_the_blame_names_the_weights() -> None:
    """Of several spaces the one that is at fault."""
    model, x = network("ResNet, basic")
    flow = Flow(model, x)
    orders = shuffled(flow)
    good, bad = orders[0], orders[1]
    with pytest.raises(RuntimeError, match=r"the 8 channels of features\.2\.conv2\.0\.weight\[1\]"):
        flow.verify([good, (Space(bad[0].sites[-1:], bad[0].size), bad[1])])


@pytest.mark.parametrize("name", ["ResNet, basic", "ViT", "recurrent"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_left_alone(name: str, dtype: torch.dtype) -> None:
    """Finding spaces and comparing changes no value, mode, gradient or random state."""
    model, x = network(name)
    model.to(dtype)
    next(model.children()).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    flow = Flow(model, x.to(dtype))
    assert flow.difference(shuffled(flow)) <= TOLERANCE
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.fft.fft(self.a(x)).real)


def test_an_unknown_operation_is_named() -> None:
    """Its channels stay, and the reason says which operation it was."""
    flow = Flow(Unknown(), torch.randn(2, 4))
    reasons = {name: space.stays for space in flow.spaces for name in space.weights()}
    assert "fft" in reasons["a.weight[0]"]
    assert "known to keep channels apart" in reasons["a.weight[0]"]
    assert reasons["a.weight[1]"] == "an input of the network"
    assert reasons["b.weight[0]"] == "an output of the network"


def test_example_inputs() -> None:
    """A tensor, several arguments, keyword arguments, or a list of those."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"out": self.c(self.a(x) + self.b(y))}

    x, y = torch.randn(2, 4), torch.randn(2, 5)
    for example in ((x, y), {"x": x, "y": y}, [(x, y), {"x": x, "y": y}]):
        assert moving(Flow(Two(), example)) == {"a.weight[0]", "b.weight[0]", "c.weight[1]"}
    with pytest.raises(ValueError, match="give at least one"):
        Flow(Two(), [])


def test_models_that_cannot_be_run() -> None:
    """The message says in which mode, and what to do."""
    with pytest.raises(ValueError, match="does not run on example_input"):
        Flow(nn.Linear(4, 3), torch.randn(2, 5))
    with pytest.raises(ValueError, match="returns no tensor"):
        Flow(_Returns(3.0), torch.randn(2))
    with pytest.raises(ValueError, match="cannot be compared: it holds a _Opaque"):
        Flow(_Returns(_Opaque()), torch.randn(2))
    with pytest.raises(ValueError, match="nothing finite"):
        Flow(_Returns(torch.tensor(float("nan"))), torch.randn(2))


class _Opaque:
    __slots__ = ()


class _Returns(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> object:
        return self.value


class _Normed(nn.Module):
    def __init__(self, unused: bool) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.unused = nn.Linear(8, 3) if unused else None

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


def test_training_that_cannot_be_run() -> None:
    """A note where evaluation has seen every parameter; an error where it has not, with what training said."""
    (note,) = Flow(_Normed(False), torch.randn(1, 4)).notes
    assert note.startswith("only evaluation was compared")
    assert "more than 1 value per channel" in note
    flow = Flow(_Normed(True), torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"unused\.weight.*more than 1 value per channel"):
        flow.verify(shuffled(flow))


def test_what_no_run_uses_is_noted_or_refused() -> None:
    """It could read the channels that move, by its shape; if it could not, it is none of their business."""
    model, x = _Normed(True), torch.randn(2, 4)
    flow = Flow(model, x)
    with pytest.raises(ValueError, match=r"^unused\.weight: used in no run.*Give an example_input that uses it"):
        flow.verify(shuffled(flow))
    model.unused = nn.Linear(7, 3)
    flow = Flow(model, x)
    assert flow.notes == ["not used in any run, and not changed: unused.weight, unused.bias"]
    flow.verify(shuffled(flow))


class _Optional(nn.Module):
    """What is read off one input alone would change the function of others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(5, 8)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        h = self.a(x)
        return self.b(h if c is None else h + self.c(c))


def test_several_inputs_that_together_use_everything() -> None:
    """An optional argument."""
    x, c = torch.randn(2, 4), torch.randn(2, 5)
    flow = Flow(_Optional(), x)
    with pytest.raises(ValueError, match=r"^c\.weight, c\.bias: used in no run"):
        flow.verify(shuffled(flow))
    model = _Optional()
    flow = Flow(model, [x, (x, c)])
    assert moving(flow) == {"a.weight[0]", "b.weight[1]", "c.weight[0]"}
    flow.verify(shuffled(flow))
    after = permuted(model, shuffled(flow))
    for example in ((x,), (x, c)):
        assert torch.allclose(model(*example), after(*example), atol=1e-6)


class _Auxiliary(nn.Module):
    """Training fails between the layers of a part that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)
        self.aux = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.b(self.a(x)), self.aux(x)) if self.training else (self.b(self.a(x)),)


def test_what_a_run_met_before_it_failed_was_not_seen() -> None:
    """Otherwise the channels that it made last would move, and nothing that reads them."""
    flow = Flow(_Auxiliary(), torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"aux\.0\.weight, aux\.0\.bias"):
        flow.verify(shuffled(flow))


class _Stateful(nn.Module):
    """State in a buffer that is assigned anew, in Python, and random numbers that are not torch's."""

    def __init__(self, function: Callable[[nn.Module], float]) -> None:
        super().__init__()
        self.a, self.b, self.function, self.calls = nn.Linear(4, 8), nn.Linear(8, 3), function, 0
        self.register_buffer("r", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        h, self.calls = self.a(x), self.calls + 1
        self.r = 0.9 * self.r + h.mean(0)
        return self.b(h + self.r) * (self.calls + self.function(self))


def test_state_begins_anew_with_each_run() -> None:
    """What a run leaves in the model does not tell it from the next; random numbers come as they would have."""
    random.seed(3)
    model = _Stateful(lambda _: random.random() + np.random.rand())
    flow = Flow(model, torch.randn(2, 4))
    flow.verify(shuffled(flow))
    assert {"a.weight[0]", "b.weight[1]"} <= moving(flow)
    assert model.calls == 0
    drawn = random.random()
    random.seed(3)
    assert random.random() == drawn


def test_a_model_that_is_not_deterministic() -> None:
    """Is called that, rather than that a space is blamed."""
    calls = count()
    flow = Flow(_Stateful(lambda _: next(calls)), torch.randn(2, 4))
    with pytest.raises(ValueError, match="the model is not deterministic"):
        flow.verify(shuffled(flow))


def test_another_number_of_outputs_is_another_function() -> None:
    class More(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.a(x)] * (1 + next(calls))

    calls = count()
    assert Flow(More(), torch.randn(2, 4)).difference([]) == float("inf")


def test_what_random_values_cannot_compare_is_noted() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * (x == 1).all().double().log().exp() / (x == 1).all()

    notes = Flow(Narrow(), torch.ones(2, 4)).notes
    assert len(notes) == 2
    assert notes[0] == (
        "nothing was compared in one of the runs (evaluation, random values): the model returns nothing finite"
    )


class _Complex(nn.Module):
    """Multiplies in the frequency domain, and returns what is complex."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(self.b(self.a(x).relu())) * self.weight


def test_complex_outputs() -> None:
    """They are compared by how far they are apart, as any numbers; complex parameters stay complex."""
    flow = Flow(_Complex(), torch.randn(2, 4))
    assert "a.weight[0]" in moving(flow)
    assert flow.difference(shuffled(flow)) <= TOLERANCE
    assert _apart(torch.tensor([1 + 0j, 2j]), torch.tensor([1 + 0j, 1j])) == 0.5


class Random(nn.Module):
    """A program of random operations over a list of tensors ``[2, channels, 6, 6]``."""

    def __init__(self, program: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.program, self.layers = program, nn.ModuleDict()
        widths = [3]
        for step, (op, i, j) in enumerate(program):
            c, other = widths[i % len(widths)], widths[j % len(widths)]
            layer: nn.Module | None = None
            width = c
            if op == "conv":
                width = (4, 6, 8)[j % 3]
                layer = nn.Conv2d(c, width, 3, padding=1)
            elif op == "depthwise":
                width = c * (1 + j % 2)
                layer = nn.Conv2d(c, width, 3, padding=1, groups=c)
            elif op == "grouped" and c % 2 == 0:
                width = 8
                layer = nn.Conv2d(c, 8, 1, groups=2)
            elif op == "transposed":
                width = 4 if c % 2 else 8
                layer = nn.ConvTranspose2d(c, width, 3, padding=1, groups=1 if c % 2 else 2)
            elif op == "norm":
                layer = [nn.BatchNorm2d(c), nn.InstanceNorm2d(c, affine=True), nn.GroupNorm(2 if c % 2 == 0 else 1, c)][
                    j % 3
                ]
            elif op == "gate":
                layer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1), nn.Sigmoid())
            elif op == "cat":
                width = c + other
            elif op == "add" and c != other:
                layer = nn.Conv2d(other, c, 1)
            elif op == "half" and c % 2 == 0:
                width = c // 2
            if layer is not None:
                self.layers[str(step)] = layer
            widths.append(width)
        self.fc, self.fc2 = nn.Linear(widths[-1] * 9, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        xs = [x]
        for step, (op, i, j) in enumerate(self.program):
            a, b = xs[i % len(xs)], xs[j % len(xs)]
            layer = dict(self.layers).get(str(step))
            if op in ("conv", "depthwise", "transposed", "norm") or (op == "grouped" and layer is not None):
                y = layer(a)
            elif op == "gate":
                y = a * layer(a)
            elif op == "cat":
                y = torch.cat([a, b], 1)
            elif op == "add":
                y = a + (b if layer is None else layer(b))
            elif op == "half" and a.shape[1] % 2 == 0:
                y = a.chunk(2, 1)[j % 2]
            elif op == "shuffle" and a.shape[1] % 2 == 0:
                y = a.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            elif op == "flip":
                y = a.flip(1)
            elif op == "pool":
                y = F.max_pool2d(a, 3, 1, 1)
            else:
                y = F.relu(a)
            xs.append(y)
        return self.fc2(F.relu(self.fc(F.avg_pool2d(xs[-1], 2).flatten(1))))


OPS = [
    "conv",
    "depthwise",
    "grouped",
    "transposed",
    "norm",
    "gate",
    "cat",
    "add",
    "half",
    "shuffle",
    "flip",
    "pool",
    "relu",
]
STEP = st.tuples(st.sampled_from(OPS), st.integers(0, 9), st.integers(0, 9))


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=2, max_size=9))
def test_random_networks(program: list[tuple[str, int, int]]) -> None:
    """Whatever is wired to whatever: what may move moves, and nothing else changes."""
    torch.manual_seed(0)
    model, x = random_values(Random(program)), torch.randn(2, 3, 6, 6)
    flow = Flow(model, x)
    assert {"fc.weight[0]", "fc2.weight[1]"} <= moving(flow)
    assert_same_function(model, x, shuffled(flow))


def test_operations_that_write_into_a_given_tensor() -> None:
    """``out=`` is no operand: channels are followed into it as into any result."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x).relu(), self.b(x)
            with torch.no_grad():  # autograd forbids out=
                joined = torch.empty(len(x), 16, dtype=x.dtype)
                torch.cat([a, b], 1, out=joined)
                stacked = torch.empty(len(x), 2, 8, dtype=x.dtype)
                torch.stack([a, b], 1, out=stacked)
            return self.c(joined) + stacked.sum((1, 2))[:, None]

    model, x = Written(), torch.randn(5, 4)
    flow = Flow(model, x)
    assert {"a.weight[0]", "c.weight[1]"} <= moving(flow)
    with torch.no_grad():
        orders = shuffled(flow)
        after = permuted(model, orders)
        torch.testing.assert_close(after(x), model(x))
