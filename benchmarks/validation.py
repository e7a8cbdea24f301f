"""Whole networks with sparse weights against dense ones on a CPU: a forward pass, and validation by a Trainer.

    python benchmarks/validation.py

ResNet-18 and MobileNet-V2 on 224x224 images, and a transformer encoder of 6 layers (width 512, 128 tokens), each 2:4
and 1x16@0.75; random weights, masked where the callback would. Every candidate takes its turn in every round, medians,
fp32, torch's own threads. Dense candidates: the model as a user has it, the same with its channels last, and
torch.compile with freezing. Sparse ones: `lightning_nm.sparse.accelerate`, and ``Trainer(strategy="nm_sparse")``. Every
output is compared with the masked model's dense one. Results are added to the results file, network by network.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from networks import NETWORKS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_nm.callbacks.table import markdown_table
from lightning_nm.cli.bench_report import machine
from lightning_nm.patterns import parse
from lightning_nm.sparse import Acceleration, accelerate
from lightning_nm.sparse.timing import Timing, take_turns
from lightning_nm.strategies import NMSparseStrategy
from lightning_nm.training import select

EAGER, LAST, FROZEN = "dense", "dense, channels last", "dense, compiled"
TOLERANCE = 1e-3
"""Of the largest output."""


class Judged(L.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def validation_step(self, x: Tensor) -> None:
        self.log("size", self.model(x).abs().mean(), batch_size=len(x))


class Clock(L.Callback):
    """Seconds of the first batch, and of each of the others."""

    def __init__(self) -> None:
        self._at: list[float] = []

    def on_validation_start(self, *_: object) -> None:
        self._at = [time.perf_counter()]

    def on_validation_batch_end(self, *_: object) -> None:
        self._at.append(time.perf_counter())

    @property
    def seconds(self) -> tuple[float, float]:
        return self._at[1] - self._at[0], (self._at[-1] - self._at[1]) / (len(self._at) - 2)


def masked(model: nn.Module, pattern: str) -> nn.Module:
    """A copy whose weights obey the pattern."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for weight in select(model, pattern).weights:
            weight.param.copy_(torch.where(parse(pattern).mask(weight.param, dim=weight.dim), weight.param, 0.0))
    return model


def formats(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """Contiguous, and for images with channels last."""
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
        return {name: model}
    return {name: model, f"{name}, channels last": copy.deepcopy(model).to(memory_format=torch.channels_last)}  # type: ignore[call-overload]


def frozen(model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """By torch.compile, the weights being constants of the code."""
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, which leaves nothing to compile
    with torch._inductor.config.patch(freezing=True):
        compiled: Callable[[Tensor], Tensor] = torch.compile(copy.deepcopy(model))
        compiled(x)
    torch.backends.mha.set_fastpath_enabled(True)
    return compiled


def forward(
    models: dict[str, dict[str, nn.Module]], x: Tensor, seconds: float, report: bool
) -> tuple[dict[str, Timing], dict[str, float]]:
    """(times, largest differences from the dense output as a fraction of the largest output)."""
    candidates: dict[str, Callable[[Tensor], Tensor]] = {}
    differences: dict[str, float] = {}
    accelerations: dict[str, Acceleration] = {}
    with torch.inference_mode():
        for kind, copies in models.items():
            expected = copies[kind](x)
            for name, model in copies.items():
                if kind != EAGER:
                    accelerations[name] = accelerate(model)
                candidates[name] = model
            if kind == EAGER:
                candidates[FROZEN] = frozen(copies[kind], x)
            for name in candidates.keys() - differences.keys():
                differences[name] = float((candidates[name](x) - expected).abs().max() / expected.abs().max())
                if not differences[name] < TOLERANCE:
                    raise SystemExit(f"{name}: WRONG, off by {differences[name]:.1e} of the largest output")
        calls = {name: (lambda call=call: call(x)) for name, call in candidates.items()}
        times = take_turns(calls, seconds)
    for name, acceleration in accelerations.items():
        if report:
            print(f"\n{name}\n{acceleration.report()}", flush=True)
        acceleration.restore()
    return times, differences


def validate(
    models: dict[str, dict[str, nn.Module]], x: Tensor, batches: int, rounds: int
) -> tuple[dict[str, Timing], dict[str, float]]:
    """(times of a batch within ``Trainer.validate``, seconds that the first batch took the last time)."""
    times: dict[str, list[float]] = {}
    first: dict[str, float] = {}
    loader: DataLoader[Tensor] = DataLoader([x] * (batches + 1), batch_size=None)  # type: ignore[arg-type]
    for _ in range(max(2, rounds)):  # quartiles are of two or more
        for kind, copies in models.items():
            for name, model in copies.items():
                trainer = L.Trainer(
                    accelerator="cpu",
                    strategy="auto" if kind == EAGER else NMSparseStrategy(report=False),
                    callbacks=[clock := Clock()],
                    logger=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                trainer.validate(Judged(model), loader, verbose=False)
                first[name], each = clock.seconds
                times.setdefault(name, []).append(each)
    return {name: Timing.of(own) for name, own in times.items()}, first


def measure(network: str, batch: int, given: argparse.Namespace) -> dict[str, object]:
    """All candidates of a network at a batch size."""
    torch.manual_seed(0)
    make, shape = NETWORKS[network]
    model, x = make(), torch.randn(batch, *shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(torch.randn(4, *shape))  # for the statistics of batch norm
    model.eval()
    models = {kind: formats(masked(model, kind), kind) for kind in given.patterns}
    models = {EAGER: formats(model, EAGER), **models}
    times, differences = forward(models, x, given.seconds, given.report)
    batches = max(2, min(50, int(given.seconds / 20 / times[EAGER].median)))
    validated, first = validate(models, x, batches, given.rounds)
    return {
        "machine": machine(),
        "forward": {name: timing._asdict() for name, timing in times.items()},
        "differences": differences,
        "validate": {name: timing._asdict() for name, timing in validated.items()},
        "first batch": first,
    }


def rows(cell: str, held: dict[str, dict[str, dict[str, float]]], patterns: list[str]) -> list[tuple[object, ...]]:
    """One for each pattern: milliseconds of the dense candidates, of the sparse ones, and how many times as fast."""
    forward = {name: timing["median"] for name, timing in held["forward"].items()}
    validated = {name: timing["median"] for name, timing in held["validate"].items()}

    def shown(seconds: float | None) -> str:
        return "-" if seconds is None else f"{seconds * 1e3:.1f}"

    def best(times: dict[str, float], kind: str) -> float:
        return min(seconds for name, seconds in times.items() if name.startswith(kind) and name != FROZEN)

    return [
        (
            cell,
            pattern,
            *[shown(forward.get(name)) for name in (EAGER, LAST, FROZEN)],
            *[shown(forward.get(name)) for name in (pattern, f"{pattern}{LAST.removeprefix(EAGER)}")],
            *[
                f"{dense / best(forward, pattern):.2f}"
                for dense in (forward[EAGER], best(forward, EAGER), forward[FROZEN])
            ],
            f"{shown(validated[EAGER])} -> {shown(best(validated, pattern))}",
        )
        for pattern in patterns
    ]


COLUMNS = (
    "network", "pattern", EAGER, "channels last", "compiled, frozen", "sparse", "channels last",
    "over dense", "over best eager", "over compiled", "Trainer.validate",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 32))
    parser.add_argument("--patterns", nargs="+", default=["2:4", "1x16@0.75"])
    parser.add_argument("--seconds", type=float, default=10.0, help="for the forward passes of each network and batch")
    parser.add_argument("--rounds", type=int, default=2, help="of Trainer.validate, two at least")
    parser.add_argument("--report", action="store_true", help="print what ran where, and why")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    kept = json.loads(given.results.read_text()) if given.results.is_file() else {}
    table: list[tuple[object, ...]] = []
    for network in given.networks:
        for batch in given.batches:
            cell = f"{network}, batch {batch}"
            kept[cell] = measure(network, batch, given)
            given.results.write_text(json.dumps(kept, indent=2) + "\n")
            table += rows(cell, kept[cell], given.patterns)
    print(f"ms a batch, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(markdown_table(COLUMNS, table))


if __name__ == "__main__":
    main()
