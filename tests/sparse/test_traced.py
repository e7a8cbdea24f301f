"""`torch.compile` of accelerated models: one graph, dispatched when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.sparse import Acceleration, traced
from lightning_nm.sparse.ops import ops
from tests.sparse.models import accelerated, assert_near, backends_of, in_double, linear, sparse, sparse_weight


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """Compiles by another backend, and counts."""

    def __init__(self, backend: str) -> None:
        self.compiled, self.count = lookup_backend(backend), 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return self.compiled(graph, inputs)


class Network(nn.Module):
    """A convolution and two Linears."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(self.conv(x).relu().mean((2, 3))).relu())


def network() -> Network:
    torch.manual_seed(0)
    return sparse(Network())


def images(batch: int) -> Tensor:
    return torch.randn(batch, 8, 9, 9)


def run(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_one_graph_for_every_evaluation(backend: str) -> None:
    """Restored and packed anew, by the same handle or another: nothing is compiled again, nothing stale is used."""
    model, graphs = network(), Graphs(backend)
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    acceleration = Acceleration(model, backend="cpu")
    for fresh in (False, False, True, True):
        acceleration = Acceleration(model, backend="cpu") if fresh else acceleration
        acceleration.pack()
        x = images(4)
        with acceleration.active():
            out = run(compiled, x)
        assert_near(out, in_double(model, x))
        assert backends_of(acceleration) == {f"{name}.weight": {"cpu"} for name in ("conv", "one", "two")}
        with torch.no_grad():
            model.one.weight.mul_(-1.5)
    assert graphs.count == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_any_batch(backend: str) -> None:
    """A graph of dynamic size serves all batches; each is dispatched by its own size."""
    model, graphs = network(), Graphs(backend)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    acceleration = accelerated(model)
    for batch in (4, 3, 33):
        x = images(batch)
        assert_near(run(compiled, x), in_double(model, x))
    assert graphs.count == 1
    assert [choice.size for choice in acceleration.choices["one.weight"]] == ["x [4, 16] float32", "x [33, 16] float32"]


def test_restored_models_run_dense() -> None:
    """What was compiled for the accelerated model is left."""
    model, x = network(), images(4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    acceleration = accelerated(model)
    run(compiled, x)
    acceleration.restore()
    acceleration.pack()
    assert_near(run(compiled, x), in_double(model, x))
    assert not any(acceleration.choices.values())


def test_writes_are_seen() -> None:
    """A compiled graph does not multiply by what was packed before."""
    model, x = network(), images(4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    accelerated(model)
    run(compiled, x)
    for write in (
        lambda: model.one.weight.mul_(2),
        lambda: model.load_state_dict(sparse(Network(), "1:4").state_dict()),
    ):
        with torch.no_grad():
            write()
        assert_near(run(compiled, x), in_double(model, x))


def test_autocast() -> None:
    """The dtypes that torch gives."""
    model, x = network(), images(4)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = run(model, x)
        acceleration = accelerated(model)
        out = run(compiled, x)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.05)
    assert backends_of(acceleration)["one.weight"] == {"cpu"}


def test_attention_stays_right() -> None:
    """Compiled, torch's own attention multiplies by the dense weights."""
    torch.manual_seed(0)
    model, x = sparse(nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)), torch.randn(2, 5, 64)
    accelerated(model)
    assert_near(run(torch.compile(model, backend="aot_eager"), x), in_double(model, x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_are_refused(backend: str) -> None:
    """They would be lost in silence; frozen weights need none, and inputs get theirs."""
    layer, x = linear(), torch.randn(5, 64, requires_grad=True)
    weight = layer.weight
    accelerated(layer)
    compiled = torch.compile(layer, backend=backend)
    with pytest.raises(Exception, match=r"cannot give an accelerated weight its gradient: use torch.no_grad\(\)"):
        compiled(x)
    torch._dynamo.reset()
    layer.requires_grad_(False)
    torch.compile(layer, backend=backend)(x).sum().backward()
    assert x.grad is not None
    assert_near(x.grad, weight.sum(0).expand(5, 64))


@pytest.mark.parametrize("dim", [0, 1])
def test_the_operator_is_what_torch_demands(dim: int) -> None:
    """Schema and fake tensors; nobody accelerates its weight here, so torch multiplies."""
    weight, x = sparse_weight((32, 16), dim=dim), torch.randn(3, 16 if dim else 32)
    arguments = (x, weight, torch.randn(32 if dim else 16), dim, *traced._NO_CONVOLUTION)
    torch.library.opcheck(ops.product.default, arguments)
    expected = x @ (weight.T if dim else weight) + arguments[2]
    assert_near(ops.product(*arguments), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_operator_of_convolutions(layout: torch.memory_format) -> None:
    """Its fake has the real one's strides."""
    x = torch.randn(2, 16, 9, 8).contiguous(memory_format=layout)
    convolution = Convolution((3, 3), (2, 1), (1, 0), (1, 2), 2)
    arguments = (x, sparse_weight((32, 8, 3, 3)), None, 1, *convolution)
    torch.library.opcheck(ops.product.default, arguments)
    assert_near(ops.product(*arguments), convolution.dense(x, arguments[1], None))
