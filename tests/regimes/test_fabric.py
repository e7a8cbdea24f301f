"""Fabric, in one process and in two: sparse at every forward, the very lambda, resumed bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from torch import Tensor, nn

from tests.processes import torchrun
from tests.regimes.graphs import Graphs
from tests.regimes.loops import (
    LR,
    STEPS,
    TWO_PROCESSES,
    FabricRun,
    assert_lambda,
    assert_same,
    loss_of,
    samples,
)
from tests.regimes.matrix import refused, supported
from tests.regimes.watch import watched

AREA = "Without a Trainer"


def fabric(precision: Any = "32-true", scale: float = 2.0**10) -> Fabric:
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    return Fabric(accelerator="cpu", devices=1, precision=precision)


PRECISIONS = ["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed"]
FABRIC: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"Fabric `{precision}`": (precision, {}) for precision in PRECISIONS},
    "Fabric `no_backward_sync`": ("32-true", {"micro_batches": 4}),
    "Fabric `clip_gradients` by norm": ("32-true", {"max_norm": 0.3}),
    "Fabric `clip_gradients` by value": ("32-true", {"clip_val": 0.1}),
    "Fabric `16-mixed`, accumulated and clipped": ("16-mixed", {"micro_batches": 4, "max_norm": 0.3}),
}


@pytest.fixture(scope="module", params=FABRIC)
def run(request):
    precision, settings = FABRIC[request.param]
    run = FabricRun(fabric(precision), **settings)
    with watched() as run.seen:
        return run.train()


@supported(AREA, *FABRIC)
def test_every_forward_is_sparse(run):
    """Promise 1, whoever runs the loop."""
    # `watched` looked at the weights of each
    assert run.seen.forwards == 2 * STEPS * run.micro_batches


@supported(AREA, *FABRIC)
def test_lambda(run):
    """Scaling, accumulation and clipping leave the decay what was asked for, in every precision."""
    assert_lambda(run.start, run.state(), [LR] * STEPS)


@supported(AREA, *FABRIC)
def test_masks_follow_the_weights(run):
    """The mask is that of the dense weight as the last step left it; some entries have changed sides."""
    end, moved = run.state(), 0
    for weight in run.sparsifier.weights:
        mask = end[f"mask {weight.name}"]
        assert torch.equal(mask, weight.pattern.mask(end[weight.name] + end[f"hidden {weight.name}"]))
        moved += int((mask != run.start[f"mask {weight.name}"]).sum())
    assert moved > 0


@supported(AREA, "Fabric `16-mixed`, skipped steps")
def test_a_step_that_the_scaler_skips_advances_nothing():
    """Half-precision overflow skips steps until the scale fits: only the others count and decay."""
    run = FabricRun(fabric("16-mixed", scale=2.0**20)).train()
    assert 0 < run.sparsifier.steps < STEPS
    assert_lambda(run.start, run.state(), [LR] * run.sparsifier.steps)


@supported(AREA, "Fabric closures")
def test_a_closure():
    """optimizer.step(closure) trains as backward and step do."""
    run = FabricRun(fabric())

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        loss = loss_of(run.model(samples(step)))
        run.fabric.backward(loss)
        return loss

    with run.sparsifier, watched():
        for step in range(STEPS):  # noqa: B007 (the closure reads it)
            run.optimizer.step(closure)
    assert_same(run.state(), FabricRun(fabric()).train().state())


@supported("Compilation", "`fabric.setup(torch.compile(module))`")
def test_a_compiled_network():
    """Fabric compiles what it has wrapped: sparse weights in every graph, and the uncompiled run bit for bit."""
    graphs = Graphs()

    def compile(network: nn.Module) -> Any:
        # Fabric keeps a deep copy of a backend that is no function
        return torch.compile(network, backend=lambda *args: graphs(*args))

    run = FabricRun(fabric(), compile=compile).train()
    assert graphs.weights == 2 * STEPS
    assert graphs.violations == 0
    assert_same(run.state(), FabricRun(fabric()).train().state())


@supported(AREA, "`fabric.save` and `fabric.load`")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resuming_is_going_on(precision, tmp_path):
    """Promise 2: a sparsifier is saved and restored like the model and the optimizer."""
    whole = FabricRun(fabric(precision), momentum=0.5).train()
    FabricRun(fabric(precision), momentum=0.5).train(range(3)).save(tmp_path / "half.ckpt")
    resumed = FabricRun(fabric(precision), seed=1, momentum=0.5).load(tmp_path / "half.ckpt").train(range(3, STEPS))
    assert_same(resumed.state(), whole.state())


@refused(AREA, "`fabric.load` of a sparsifier before its model", "load the model's state dict of the same checkpoint")
def test_what_is_hidden_is_never_joined_with_other_weights(tmp_path):
    """Fabric restores in the order of the dictionary; the wrong order must not pass in silence."""
    FabricRun(fabric()).train().save(tmp_path / "end.ckpt")
    run = FabricRun(fabric(), seed=1)
    run.fabric.load(
        tmp_path / "end.ckpt", {"sparsifier": run.sparsifier, "optimizer": run.optimizer, "model": run.model}
    )


# -- two processes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where two processes left their ends and a checkpoint."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("tests/regimes/loops.py", folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, dict[str, Tensor]]]:
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@supported(AREA, "Fabric DDP")
def test_ranks_hold_one_network(ranks):
    """Promise 4: weights, masks and hidden parts are the same bits on every rank."""
    zero, one = ranks
    for name in zero:
        assert_same(one[name], zero[name])


@supported(AREA, "Fabric DDP")
@pytest.mark.parametrize("regime", TWO_PROCESSES)
def test_two_processes_are_one_on_the_same_samples(ranks, regime):
    """Same masks, same weights up to the order of a sum; accumulated and clipped too."""
    run = FabricRun(fabric(), **TWO_PROCESSES[regime])
    assert_same(ranks[0][f"{regime}, start"], run.start)
    torch.testing.assert_close(ranks[0][regime], run.train().state(), atol=1e-6, rtol=0)


@supported(AREA, "Fabric DDP")
@pytest.mark.parametrize("regime", ["plain", "no_backward_sync", "clip_gradients"])
def test_lambda_does_not_grow_with_the_ranks(ranks, regime):
    """The decay is added once, not once for each process."""
    assert_lambda(ranks[1][f"{regime}, start"], ranks[1][regime], [LR] * STEPS)


@supported(AREA, "Fabric DDP")
def test_two_processes_resume_bit_for_bit(ranks):
    """Promise 2: each rank restores the same hidden parts."""
    assert_same(ranks[1]["resumed"], ranks[1]["momentum"])


@supported(AREA, "Fabric DDP")
def test_one_process_resumes_what_two_began(ranks, folder):
    """A checkpoint does not depend on how many processes wrote it."""
    run = FabricRun(fabric(), seed=1, momentum=0.5).load(folder / "half.ckpt").train(range(3, STEPS))
    torch.testing.assert_close(ranks[0]["momentum"], run.state(), atol=1e-6, rtol=0)
