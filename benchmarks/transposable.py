"""Solvers of transposable masks, side by side: how much they keep, and how long they take.

    python benchmarks/transposable.py

Gaussian tiles, one thread; every solver solves the same tiles, the solvers in turn, and the median of the times
counts. Printed are the kept magnitude beside the best masks', the share of tiles whose mask is a best one, and
the time per tile.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nm.callbacks.table import markdown_table
from lightning_nm.kernels import compiled_cpu, transposable, transposable_mask

CASES = {(2, 4): 65536, (4, 8): 65536, (8, 16): 8192, (16, 32): 1024}
"""Pattern -> tiles."""
SOLVERS = ("exact", "entropic", "fast", "flow")


class Result(NamedTuple):
    pattern: str
    solver: str
    kept: float
    """Magnitude beside the best masks'."""
    tiles: float
    """Share of tiles whose mask is a best one."""
    microseconds: float
    """Per tile."""


def solver_of(name: str, n: int, m: int) -> Callable[[Tensor], Tensor]:
    """Weight -> mask."""
    if name == "greedy (short)":
        compiled = compiled_cpu()
        stages = transposable if compiled is None else compiled.transposable
        return lambda weight: stages.greedy(stages.scores_of(weight.view(-1, m, m)), n).view(-1, m)
    at_most = name == "two_approximation"
    return lambda weight: transposable_mask(weight, n, m, 1, 0, name, at_most)


def kept(weight: Tensor, mask: Tensor, m: int) -> Tensor:
    """Magnitude of each tile, float64."""
    return (weight.double().abs() * mask).view(-1, m, m).sum((1, 2))


def measure(n: int, m: int, tiles: int, rounds: int) -> list[Result]:
    weight = torch.randn(tiles * m, m, generator=torch.Generator().manual_seed(0))
    names = [*SOLVERS, "two_approximation", "greedy (short)"]
    solvers = {name: solver_of(name, n, m) for name in names}
    masks = {name: solve(weight) for name, solve in solvers.items()}  # and compiles
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, solve in solvers.items():
            start = time.perf_counter()
            solve(weight)
            times[name].append(time.perf_counter() - start)
    best = kept(weight, masks["exact"], m)
    rows = []
    for name in names:
        share = kept(weight, masks[name], m) / best
        rows.append(
            Result(
                pattern=f"{n}:{m}T",
                solver=name,
                kept=float((share * best).sum() / best.sum()),
                tiles=float((share > 1 - 1e-9).double().mean()),
                microseconds=statistics.median(times[name]) / tiles * 1e6,
            )
        )
    return rows


def plot(rows: list[Result], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(CASES), figsize=(3 * len(CASES), 3), sharey=True)
    for ax, (n, m) in zip(axes, CASES):
        for row in rows:
            if row.pattern == f"{n}:{m}T" and row.kept >= 0.98:
                ax.plot(row.microseconds, 1 - row.kept + 1e-6, "o", label=row.solver)
        ax.set(xscale="log", yscale="log", xlim=(0.05, 1000), title=f"{n}:{m}T", xlabel="µs per tile, one thread")
    axes[0].set_ylabel("lost magnitude + 1e-6")
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--figure", type=Path, default=Path(__file__).with_suffix(".png"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for (n, m), tiles in CASES.items() for row in measure(n, m, tiles, given.rounds)]
    cells = {(r.solver, r.pattern): f"{r.kept:.5f}, {r.tiles:.0%}, {r.microseconds:.3g} µs" for r in rows}
    patterns = [f"{n}:{m}T" for n, m in CASES]
    lines = [
        (solver, *[cells[solver, pattern] for pattern in patterns]) for solver in dict.fromkeys(r.solver for r in rows)
    ]
    print(markdown_table(("solver", *patterns), lines))
    plot(rows, given.figure)


if __name__ == "__main__":
    main()
