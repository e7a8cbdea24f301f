"""torch.compile of the optimizer's step, with or without forward and backward: hooks are called, and not compiled."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lightning_nm import Sparsifier, select
from tests.helpers import net, trainer
from tests.regimes.graphs import Graphs, Run
from tests.regimes.matrix import supported
from tests.regimes.watch import sparsity
from tests.training.runs import mlp, noise

AREA = "Compilation"
STEPS = ["optimizer.step", "optimizer.step(closure)", "training step"]
NAMES = [f"compiled `{STEPS[0]}`", f"compiled `{STEPS[1]}`", "compiled training step"]


def loop(compile: str, *, sparse: bool) -> Run:
    """Twelve steps of a plain loop, of which a part is compiled."""
    graphs, model = Graphs(), mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def backward(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    def step(x: Tensor) -> None:
        if compile == "optimizer.step(closure)":
            optimizer.step(lambda: backward(x))
        else:
            backward(x)
            optimizer.step()

    if compile.startswith("optimizer.step"):
        optimizer.step = torch.compile(optimizer.step, backend=graphs)  # type: ignore[method-assign]
    elif compile == "training step":
        step = torch.compile(step, backend=graphs)
    sparsifier = Sparsifier(select(model, "2:4")) if sparse else None
    with sparsifier or nullcontext():
        for seed in range(12):
            step(noise(4, 8, seed=seed))
    return Run(model, sparsifier.weights if sparsifier else [], graphs)


@supported(AREA, *NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_a_compiled_step_is_the_uncompiled_step(step):
    """The hooks around a compiled step are called: weights and hidden parts agree."""
    compiled = loop(step, sparse=True)
    assert compiled.graphs.compiled > 0
    compiled.assert_near(loop("nothing", sparse=True))


@supported(AREA, *NAMES[1:])
@pytest.mark.parametrize("step", STEPS[1:])
def test_compiled_forwards_see_sparse_weights(step):
    """Promise 1 where forward, backward and update are in one compiled call."""
    loop(step, sparse=True).assert_sparse()


@supported(AREA, *NAMES)
@pytest.mark.parametrize("step", STEPS)
def test_the_compiler_leaves_our_hooks_alone(step):
    """What splits a weight is never traced: the graphs are those of the dense loop, and no graph break is added."""
    sparse, dense = loop(step, sparse=True), loop(step, sparse=False)
    assert sparse.graphs.compiled == dense.graphs.compiled
    assert sparse.breaks <= dense.breaks


@supported(AREA, "compiled autograd")
def test_compiled_autograd():
    """A backward that is compiled as it runs accumulates the same gradients."""
    with torch._dynamo.config.patch(compiled_autograd=True):
        captured = loop("training step", sparse=True)
    assert counters["compiled_autograd"]["captures"] > 0
    captured.assert_near(loop("nothing", sparse=True))


def fit_with_compiled_optimizer(folder, backend: Graphs | None) -> Run:
    model, callback = net(), sparsity()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    if backend is not None:
        optimizer.step = torch.compile(optimizer.step, backend=backend)  # type: ignore[method-assign]
    model.configure_optimizers = lambda: optimizer  # type: ignore[method-assign]
    trainer(folder, callback).fit(model)
    assert callback.sparsifier is not None
    return Run(model, callback.sparsifier.weights, backend or Graphs())


@supported(AREA, NAMES[0])
def test_a_compiled_optimizer_in_a_trainer(tmp_path):
    """Lightning hands its closure to a compiled step: forward, backward and update run inside it."""
    graphs = Graphs()
    run = fit_with_compiled_optimizer(tmp_path, graphs)
    assert graphs.compiled > 0
    run.assert_near(fit_with_compiled_optimizer(tmp_path, None))
