"""Two processes: one network, one topology, and the same ones as in a single process."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from lightning_nm import NMSparsityCallback
from lightning_nm.callbacks.compatibility import require_compatible
from lightning_nm.cli.report import examine, load_checkpoint
from lightning_nm.patterns import NM
from tests.helpers import net, same_bits
from tests.processes import torchrun
from tests.regimes.matrix import refused, supported
from tests.regimes.parallel_run import TRANSPOSABLE, Uneven, fit, seeded

Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone():
    """The same training in a single process."""
    return {"sr_ste": fit(seeded(Uneven), "auto"), "s_ste": fit(seeded(Uneven), "auto", method="s_ste")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What both processes end with under a strategy, and the folder with its checkpoints."""
    done: dict[str, tuple[Ranks, Any]] = {}

    def run(strategy: str) -> tuple[Ranks, Any]:
        if strategy not in done:
            folder = tmp_path_factory.mktemp(strategy)
            torchrun("tests/regimes/parallel_run.py", folder, strategy)
            ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
            done[strategy] = ranks, folder
        return done[strategy]

    return run


def assert_same(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Bit for bit."""
    for part in ("weights", "hidden", "masks"):
        assert mine[part].keys() == theirs[part].keys()
        for name, tensor in theirs[part].items():
            assert same_bits(mine[part][name], tensor) if part != "masks" else torch.equal(mine[part][name], tensor)
    assert mine["history"] == theirs["history"]


def assert_sparse(weights: dict[str, Tensor], names: Any) -> None:
    for name in names:
        assert NM(2, 4).violations(weights[name]) == 0, name


STRATEGIES = [("ddp", "whole"), ("fsdp2", "folder"), ("fsdp2", "file")]


@supported("Parallelism", "DDP", "FSDP2 (`ModelParallelStrategy`)")
@pytest.mark.parametrize(("strategy", "run"), STRATEGIES)
def test_ranks_train_one_network(runs, strategy, run):
    """Promise 4: weights, hidden parts, masks and the SAD history are the same on both ranks."""
    (zero, one), _ = runs(strategy)
    assert_same(zero[run], one[run])
    assert_sparse(zero[run]["weights"], zero[run]["masks"])
    assert set(zero[run]["masks"]) == {"conv.weight", "net.0.weight", "net.2.weight", "last.0.weight", "last.1.weight"}
    assert all(hidden.count_nonzero() > 0 for hidden in zero[run]["hidden"].values())


@supported("Parallelism", "DDP", "FSDP2 (`ModelParallelStrategy`)")
@pytest.mark.parametrize(
    ("strategy", "run", "method"),
    [(*s, "sr_ste") for s in STRATEGIES] + [("ddp", "s_ste", "s_ste"), ("fsdp2", "s_ste", "s_ste")],
)
def test_two_processes_train_what_one_does(runs, alone, strategy, run, method):
    """On the same global batches: equal masks, SAD that the world size inflates nowhere, weights to rounding."""
    mine, theirs = runs(strategy)[0][0][run], alone[method]
    assert len(theirs["history"]) == 9
    assert mine["history"] == theirs["history"]
    for name, mask in theirs["masks"].items():
        assert torch.equal(mine["masks"][name], mask), name
    for part in ("weights", "hidden"):
        for name, tensor in theirs[part].items():
            torch.testing.assert_close(mine[part][name], tensor, atol=1e-6, rtol=0)


@supported("Parallelism", "transposable patterns under DDP and FSDP2")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_transposable_masks_are_those_of_one_process(runs, strategy):
    """Tiles lie within a shard: masks that were solved piece by piece are those of the whole weights."""
    mine, theirs = runs(strategy)[0][1]["transposable"], fit(seeded(Uneven), "auto", **TRANSPOSABLE)
    assert set(mine["masks"]) == {"conv.weight", "net.0.weight", "last.0.weight"}
    assert mine["history"] == theirs["history"]
    assert any(entry for entry in mine["history"])
    for name, mask in theirs["masks"].items():
        assert torch.equal(mine["masks"][name], mask), name
        assert NM(2, 4, transposable=True).violations(mine["weights"][name]) == 0, name


@supported("Parallelism", "DDP, ranks seeded apart")
def test_ranks_that_were_seeded_apart_train_one_network(runs):
    """As DDP broadcasts the weights of rank 0, masks, hidden parts and SAD are rank 0's everywhere."""
    (zero, one), _ = runs("ddp")
    assert_same(zero["apart"], one["apart"])
    assert_sparse(one["apart"]["weights"], one["apart"]["masks"])


@supported("Parallelism", "DDP", "FSDP2, checkpoint in one file", "FSDP2, sharded checkpoint")
@pytest.mark.parametrize(
    ("strategy", "whole", "resumed"),
    [("ddp", "whole", "resumed"), ("fsdp2", "file", "file resumed"), ("fsdp2", "folder", "folder resumed")],
)
def test_a_resumed_run_is_the_uninterrupted_one(runs, strategy, whole, resumed):
    """Promise 2, on each rank."""
    for rank in runs(strategy)[0]:
        assert_same(rank[resumed], rank[whole])


@supported("Parallelism", "several fits in a row under DDP and FSDP2")
def test_a_second_fit_goes_on_as_in_one_process(runs):
    """The last validation leaves FSDP2's root parameters gathered: the next fit must know the model again."""
    alone = fit(seeded(Uneven), "auto", again="auto")
    assert len(alone["history"]) == 18
    for strategy in ("ddp", "fsdp2"):
        mine = runs(strategy)[0][0]["again"]
        assert mine["history"] == alone["history"]
        for name, tensor in alone["hidden"].items():
            torch.testing.assert_close(mine["hidden"][name], tensor, atol=1e-6, rtol=0)


def test_what_diverges_in_one_process_is_said_in_all(runs):
    """Nobody is left waiting for the process whose piece holds a NaN."""
    (zero, one), _ = runs("fsdp2")
    assert zero["nan"] == one["nan"]
    assert "net.0.weight [16, 32]" in zero["nan"]


@supported("Parallelism", "FSDP2, resumed in one process")
def test_a_sharded_run_can_go_on_in_one_process(runs, alone):
    """Checkpoints hold whole tensors: the number of processes is no part of them."""
    resumed = fit(seeded(Uneven), "auto", resume=runs("fsdp2")[1] / "file/epoch=0.ckpt")
    assert resumed["history"] == alone["sr_ste"]["history"]
    for name, tensor in alone["sr_ste"]["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], tensor, atol=1e-6, rtol=0)


def test_a_checkpoint_in_one_file_obeys(runs):
    """Promise 3 for sharded weights: the plain model's keys and shapes, sparse."""
    checkpoint = load_checkpoint(runs("fsdp2")[1] / "file/epoch=2.ckpt")
    plain = seeded(Uneven)
    plain.load_state_dict(checkpoint["state_dict"])
    assert all(verdict.obeys for verdict in examine(checkpoint, None))


def test_the_report_says_how_to_read_a_sharded_checkpoint(runs, tmp_path):
    """The command that it names makes a file that it reads."""
    folder = runs("fsdp2")[1] / "folder/epoch=2.ckpt"
    with pytest.raises(ValueError, match="is a folder") as told:
        load_checkpoint(folder)
    command = str(told.value).partition("python ")[2].split()
    assert command[:3] == ["-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
    subprocess.run([sys.executable, *command[:3], folder, tmp_path / "whole.pt"], check=True, timeout=60)
    verdicts = examine(load_checkpoint(tmp_path / "whole.pt"), NM(2, 4))
    assert all(verdict.obeys for verdict in verdicts)


@refused("Parallelism", "FSDP2 that cuts a group", "conv.weight [4, 8, 3, 3] is sharded into pieces of [2, 8, 3, 3]")
def test_a_shard_that_cuts_a_group_is_refused(runs):
    """By name, in every process."""
    (zero, one), _ = runs("fsdp2")
    assert zero["cut"] == one["cut"]
    assert "overrides={'conv.weight': None}" in zero["cut"]
    raise ValueError(zero["cut"])


@refused(
    "Parallelism", "FSDP2 that cuts a transposable tile", "last.0.weight [8, 16] is sharded into pieces of [4, 16]"
)
def test_a_shard_that_cuts_a_tile_is_refused(runs):
    """8 outputs over two processes hold no whole 8 x 8 tile."""
    raise ValueError(runs("fsdp2")[0][1]["cut tile"])


@refused(
    "Parallelism",
    "FSDP2 with a pattern whose budget is the layer's (1xN, unstructured, filters)",
    "conv.weight [8, 4, 3, 3] is sharded, and the budget of 1x2@0.5 is the whole layer's. Train it under DDP",
)
def test_a_layer_budget_of_a_sharded_weight_is_refused(runs):
    """No process sees the whole layer."""
    raise ValueError(runs("fsdp2")[0][1]["layerwise"])


@refused(
    "Parallelism",
    "FSDP2 with an average (EMA, SWA)",
    "averages whole models; ModelParallelStrategy shards them. Use DDP",
)
@pytest.mark.parametrize("averaging", ["WeightAveraging", "StochasticWeightAveraging"])
def test_averages_of_sharded_models_are_refused(averaging):
    """Lightning copies the model before it is sharded."""
    callback = getattr(L.pytorch.callbacks, averaging)(0.1)
    require_compatible(SimpleNamespace(strategy=ModelParallelStrategy(), callbacks=[callback]), None)  # type: ignore[arg-type]


def set_up(strategy: Any) -> None:
    NMSparsityCallback().setup(SimpleNamespace(strategy=strategy, callbacks=[]), net(), "fit")  # type: ignore[arg-type]


@refused(
    "Parallelism",
    'FSDP1 (`strategy="fsdp"`)',
    "FSDP1 (FullyShardedDataParallel) flattens parameters into one vector, which cuts N:M groups anywhere. "
    "Use FSDP2: strategy=ModelParallelStrategy()",
)
def test_fsdp1_is_refused():
    """Before anything is wrapped. (On a CPU Lightning itself refuses this strategy.)"""
    set_up(FSDPStrategy())


@refused(
    "Parallelism",
    "DeepSpeed",
    "DeepSpeed steps flattened copies of the weights, which no mask reaches. "
    "Use DDP, or FSDP2: strategy=ModelParallelStrategy()",
)
def test_deepspeed_is_refused():
    """Whether deepspeed is installed or not."""
    set_up(DeepSpeedStrategy.__new__(DeepSpeedStrategy))


@supported(
    "Parallelism", "`ddp_spawn`, `ddp_fork`", note="the hidden parts stay in the processes: resume from a checkpoint"
)
def test_spawned_processes(tmp_path):
    """The model comes back sparse, and the user is told what does not come back."""
    model, callback = net(), NMSparsityCallback("2:4", report=False)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        strategy="ddp_spawn",
        devices=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[callback],
    )
    trainer.fit(model)
    assert_sparse(dict(model.named_parameters()), ["conv.weight", "net.0.weight", "net.2.weight"])
