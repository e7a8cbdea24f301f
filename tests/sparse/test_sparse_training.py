"""Training by sparse products is training by the dense ones, up to rounding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm.sparse import SparseTraining
from lightning_nm.sparse.backends import Cpu
from lightning_nm.training import Schedule, Sparsifier, select
from tests.sparse.models import Conv1D, assert_near, sparse


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 8, bias=False))


def data(batch: int = 8) -> Tensor:
    return torch.randn(batch, 16, generator=torch.Generator().manual_seed(1))


def backends(training: SparseTraining) -> dict[str, list[str]]:
    """By weight: of the product, then of x's gradient."""
    out: dict[str, list[str]] = {}
    for row in training.rows():
        out.setdefault(row.name, []).append(row.backend)
    return out


def train(
    model: nn.Module, training: SparseTraining | None, steps: int = 4, accumulate: int = 1, **kwargs: Any
) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, **kwargs)
    for step in range(steps):
        for part in range(accumulate):
            x = data() * (1 + step + part)
            if training is None:
                loss = model(x).square().mean()
            else:
                with training:
                    loss = model(x).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The dimension of each weight that was packed."""
    along: list[int] = []
    hold = Cpu.hold_known

    def hold_known(self: Cpu, weight: Tensor, pattern: Any, dim: int) -> Any:
        along.append(dim)
        return hold(self, weight, pattern, dim)

    monkeypatch.setattr(Cpu, "hold_known", hold_known)
    return along


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_those_in_float64(fused: bool) -> None:
    """Of every parameter, at each of several steps, at the weights of that step; by the sparse kernels."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, fused=fused)
    with Sparsifier(select(model, "2:4T")) as sparsifier:
        training = SparseTraining(sparsifier, backend="cpu")
        for _ in range(3):
            exact = copy.deepcopy(model).double()
            exact(data().double()).square().sum().backward()
            optimizer.zero_grad()
            with training:
                model(data()).square().sum().backward()
            for one, other in zip(model.parameters(), exact.parameters(), strict=True):
                assert_near(one.grad, other.grad)
            optimizer.step()
    # the first layer's input asks for no gradient
    assert backends(training) == {"0.weight": ["cpu"], "2.weight": ["cpu", "cpu"], "4.weight": ["cpu", "cpu"]}


@pytest.mark.parametrize("pattern", ["2:4T", "2:4"])
def test_a_run(pattern: str) -> None:
    """Ends where the dense one does, with exact masks; the mode changes nothing else."""
    models = [mlp(), mlp()]
    for model, on in zip(models, (True, False)):
        with Sparsifier(select(model, pattern)) as sparsifier:
            train(model, SparseTraining(sparsifier, backend="cpu") if on else None, accumulate=2)
            for weight in sparsifier.weights:
                assert weight.pattern.violations(weight.param) == 0
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_packed_once_for_each_optimizer_step(packings: list[int]) -> None:
    """Not for each micro-batch; twice where a gradient goes on to another layer."""
    model = mlp()
    with Sparsifier(select(model, "2:4T")) as sparsifier:
        train(model, SparseTraining(sparsifier, backend="cpu"), steps=3, accumulate=4)
    assert len(packings) == 3 * (3 + 2)
    assert packings[:5] == [1, 1, 1, 0, 0]


def test_dense_until_the_schedule_says_so(packings: list[int]) -> None:
    """And after it: the masks are the sparsifier's to know."""
    model = mlp()
    with Sparsifier(select(model, "2:4T"), schedule=Schedule(start=2, dense_from=4)) as sparsifier:
        training = SparseTraining(sparsifier, backend="cpu")
        seen = []
        for _ in range(6):
            train(model, training, steps=1)
            seen.append(len(packings))
    assert seen == [0, 0, 5, 10, 10, 10]


def test_loaded_weights(packings: list[int]) -> None:
    """Are dense until the sparsifier has taken them; nothing stale is multiplied."""
    model, other = mlp(), mlp()
    with torch.no_grad():
        for param in other.parameters():
            param.add_(torch.randn_like(param))
    with Sparsifier(select(model, "2:4T")) as sparsifier:
        training = SparseTraining(sparsifier, backend="cpu")
        train(model, training, steps=1)
        model.load_state_dict(other.state_dict())
        before = len(packings)
        with training:
            assert model(data()).equal(other(data()))
        assert len(packings) == before
        train(model, training, steps=2)
        assert len(packings) == before + 5
        exact = copy.deepcopy(model).double()
        with training:
            assert_near(model(data()), exact(data().double()))


def test_weights_that_are_clamped_between_steps(packings: list[int]) -> None:
    """They still obey: looked at once for each update, and packed."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with Sparsifier(select(model, "2:4T")) as sparsifier:
        training = SparseTraining(sparsifier, backend="cpu")
        for step in range(1, 4):
            with torch.no_grad():
                model[0].weight.clamp_(-0.1, 0.1)
            exact = copy.deepcopy(model).double()
            with training:
                out = model(data())
            assert_near(out, exact(data().double()))
            optimizer.zero_grad()
            out.sum().backward()
            optimizer.step()
            assert len(packings) == 5 * step
    assert set().union(*backends(training).values()) == {"cpu"}


@pytest.mark.parametrize("met", [False, True])
def test_other_memory_in_a_weights_place(met: bool) -> None:
    """``param.data = dense`` has no new version: it is looked at, runs dense until the next update and says why."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with Sparsifier(select(model, "2:4T")) as sparsifier:
        training = SparseTraining(sparsifier, backend="cpu")
        if met:
            with training:
                model(data())
        model[0].weight.data = torch.randn(32, 16)
        exact = copy.deepcopy(model).double()
        with training:
            out = model(data())
        assert_near(out, exact(data().double()))
        rows = [row for row in training.rows() if row.name == "0.weight"]
        assert (rows[-1].backend, rows[-1].reason) == ("dense", "what was written to it breaks 2:4T")
        assert len(rows) == 1 + met
        out.sum().backward()
        optimizer.step()
        with training:
            model(data())
    assert "cpu" in backends(training)["0.weight"]


def test_a_selection_of_somebody_elses_masks() -> None:
    """Of a converted model, say: each update is looked at."""
    model = sparse(mlp(), "2:4T").train()
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    exact = copy.deepcopy(model).double()
    with training:
        assert_near(model(data()), exact(data().double()))
    assert set().union(*backends(training).values()) == {"cpu"}
    with torch.no_grad():
        model[0].weight.add_(1.0)
    exact = copy.deepcopy(model).double()
    with training:
        assert_near(model(data()), exact(data().double()))


def test_autocast() -> None:
    """Inputs and weights are cast as torch would; gradients come in the parameters' dtype."""
    model = sparse(mlp(), "2:4T").train()
    twin = copy.deepcopy(model)
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    outs = []
    for each in (model, twin):
        with torch.autocast("cpu", torch.bfloat16):
            if each is model:
                with training:
                    out = each(data())
            else:
                out = each(data())
        out.float().sum().backward()
        outs.append(out)
    assert outs[0].dtype == torch.bfloat16
    torch.testing.assert_close(*outs, atol=3e-2, rtol=3e-2)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad, atol=0.1, rtol=0.1)
    assert set().union(*backends(training).values()) == {"cpu"}


class Shared(nn.Module):
    """One weight twice, a layer of GPT-2's, an embedding, attention and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(16, 16)
        self.gpt = Conv1D(16, 32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.conv = nn.Conv1d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gpt(self.twice(self.twice(x)))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.conv(x.movedim(-1, 1))


def test_every_kind_of_layer() -> None:
    """Linear layers are multiplied packed, also twice, also ``[in, out]``; the rest runs dense and says why."""
    torch.manual_seed(0)
    model = sparse(Shared(), "2:4T").train()
    x, exact = torch.randn(2, 5, 16), copy.deepcopy(model).double()
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    with training:
        model(x).square().sum().backward()
    exact(x.double()).square().sum().backward()
    for one, other in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, atol=1e-3, rtol=1e-3)
    reasons = {row.name: row.reason for row in training.rows()}
    assert backends(training)["twice.weight"] == backends(training)["gpt.weight"] == ["cpu", "cpu"]
    assert reasons["conv.weight"] == "convolutions are trained by dense products"
    assert reasons["attention.in_proj_weight"].startswith("no linear layer has met it while it was sparse (attention")
    assert "twice.weight" in training.report()


def test_nested() -> None:
    """Entered again by a step within a step: once is enough."""
    model = sparse(mlp(), "2:4T").train()
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    with training:
        with training:
            model(data())
        out = model(data())
    assert out.grad_fn is not None
    dense = model(data())
    assert "StraightThrough" not in type(dense.grad_fn).__name__
    assert set().union(*backends(training).values()) == {"cpu"}


def test_what_is_not_a_plain_product_is_torchs() -> None:
    """vmap, forward gradients, double precision, another bias, a wrong size: as torch does it, or refuses it."""
    model = sparse(nn.Linear(16, 8), "2:4T").train()
    weight, x = model.weight, data()
    with SparseTraining(select(model, "2:4T"), backend="cpu"):
        assert_near(torch.vmap(model)(x), F.linear(x, weight, model.bias))
        tangent = torch.func.jvp(model, (x,), (x,))[1]
        assert_near(tangent, F.linear(x, weight))
        with pytest.raises(RuntimeError):
            F.linear(x[:, :8], weight)
        with pytest.raises(RuntimeError):
            F.linear(x.double(), weight)
        assert_near(F.linear(x, weight, torch.ones(1)), F.linear(x, weight) + 1)
        assert F.linear(input=x, weight=weight).shape == (8, 8)
        assert F.linear(x[:0], weight).shape == (0, 8)


def test_compiled() -> None:
    """What torch.compile compiles runs dense, whole, and the report says so."""
    model = sparse(mlp(), "2:4T").train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    training = SparseTraining(select(model, "2:4T"), backend="cpu")
    with training:
        out = compiled(data())
    assert out.equal(model(data()))
    out.sum().backward()
    assert all("what torch.compile compiles is" in row.reason for row in training.rows())
    torch._dynamo.reset()


def test_an_unknown_backend() -> None:
    """Is refused at once."""
    with pytest.raises(ValueError, match="no backend 'gpu'"):
        SparseTraining(select(mlp(), "2:4T"), backend="gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("autocast", [False, True])
def test_on_a_card(autocast: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """2:4T by cuSPARSELt, through two updates: every gradient is that of the dense products in float64."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # other tests keep the card busy while algorithms are timed
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).cuda()
    model = model if autocast else model.bfloat16()
    x = torch.randn(64, 256, device="cuda", dtype=model[0].weight.dtype).requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with Sparsifier(select(model, "2:4T")) as sparsifier:
        training = SparseTraining(sparsifier, backend="cusparselt")
        for _ in range(2):
            exact = copy.deepcopy(model).double()
            exact(x.detach().double()).square().mean().backward()
            optimizer.zero_grad()
            with training, torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                loss = model(x).float().square().mean()
            loss.backward()
            for one, other in zip(model.parameters(), exact.parameters(), strict=True):
                scale = float(other.grad.abs().max())
                torch.testing.assert_close(one.grad.double(), other.grad, atol=0.03 * scale, rtol=0.05)
            optimizer.step()
    if torch.backends.cusparselt.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        assert set().union(*backends(training).values()) == {"cusparselt"}
