"""The GPU gate: the kernels' tests on this card, then every backend against cuBLAS, and networks end to end.

    python benchmarks/gpu.py

Needs a CUDA card, torch, triton, lightning and torchmetrics; the tests need pytest besides, and without it are reported
as not run. It takes less than eight minutes: each section has its share, what is not reached in time is named, which
is no failure, and what breaks down is a row of its table. Every result is checked. Writes benchmarks/gpu-<card>.json
and .md, anew after each section, the targets of the project beside what was measured first.

Exit status 0: all is right; 1: a test failed, a result was wrong or something broke down; 2: there is no CUDA card.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

START = time.time()  # before the imports that take a while
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]  # nothing need be installed

import torch  # noqa: E402
from gpu_gate import block, command, own_tests, products, report, runner, sparse_training, step, targets  # noqa: E402
from gpu_gate.sections import Row, Section, Task  # noqa: E402
from gpu_gate.sizes import SIZES, Sizes  # noqa: E402


def _first(sizes: Sizes) -> list[Task]:
    return products.tasks(targets.behind_targets(sizes), sizes)


def _more(sizes: Sizes) -> list[Task]:
    behind = set(targets.behind_targets(sizes))
    return products.tasks([product for product in products.every(sizes) if product not in behind], sizes)


SECTIONS = (
    Section("products", "Products behind the targets", products.READING, 1.25, _first),
    Section("block", "A transformer block", block.READING, 1.25, block.tasks),
    Section("step", "The SR-STE step", step.READING, 0.75, step.tasks),
    Section("sparse training", "Training on sparse products", sparse_training.READING, 0.75, sparse_training.tasks),
    Section("bench", "lightning-nm bench", command.READING, 0.6, command.tasks),
    Section("more products", "The other products", products.READING, 0.6, _more),
)
TESTS_MINUTES = 2.5
Outcomes = dict[str, runner.Outcome]


def measured(sizes: str, end: float, wrote: Callable[[Outcomes], object]) -> Outcomes:
    """Every section in its turn; what one leaves of its time goes to those after it.

    Args:
        wrote: is called after each section with all that is known by then.
    """
    outcomes: Outcomes = {}
    waiting: runner.Worker | None = runner.Worker(SECTIONS[0].name, sizes)
    for turn, section in enumerate(SECTIONS):
        rest = sum(other.minutes for other in SECTIONS[turn:])
        until = time.time() + (end - runner.GRACE - time.time()) * section.minutes / rest
        worker, waiting = waiting, None
        if turn + 1 < len(SECTIONS):  # the next one imports meanwhile
            waiting = runner.Worker(SECTIONS[turn + 1].name, sizes)
        print(f"\n{section.title}", flush=True)
        outcomes[section.name] = runner.run(section, sizes, until, end, worker, _told)
        wrote(outcomes)
    return outcomes


def _told(row: Row) -> None:
    print(" | ".join(row.cells.values()), flush=True)


def main(args: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--minutes", type=float, default=7.6, help="for everything (default 7.6)")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR")
    parser.add_argument("--rehearse", action="store_true", help="with tiny networks on the CPU: does the gate work?")
    parser.add_argument("--section", choices=[s.name for s in SECTIONS], help=argparse.SUPPRESS)  # see runner
    parser.add_argument("--compile", metavar="N:M", help=argparse.SUPPRESS)  # see own_tests
    parser.add_argument("--sizes", choices=list(SIZES), default="card", help=argparse.SUPPRESS)
    given = parser.parse_args(args)
    if given.section:
        runner.serve(next(section for section in SECTIONS if section.name == given.section), given.sizes)
        return 0
    if given.compile:
        first = targets.behind_targets(SIZES[given.sizes])
        for said in products.compile_kernels(given.compile, first, SIZES[given.sizes]):
            print(own_tests.BROKE + said, flush=True)
        return 0
    if not given.rehearse and not torch.cuda.is_available():
        print("no CUDA card: the GPU gate measures nothing here", file=sys.stderr)
        return 2
    start = time.time() if args is not None else START  # called by somebody who began long ago
    sizes, end = "tiny" if given.rehearse else "card", start + given.minutes * 60
    compiling = [
        [sys.executable, str(HERE / "gpu.py"), "--compile", p, "--sizes", sizes] for p in SIZES[sizes].patterns
    ]
    share = TESTS_MINUTES / (TESTS_MINUTES + sum(section.minutes for section in SECTIONS))
    cap = start + share * given.minutes * 60
    tests, broken = ({}, []) if given.no_tests else own_tests.run_tests(own_tests.FILES, cap, compiling)
    for said in broken:
        print(f"{own_tests.BROKE}{said}", flush=True)
    about = report.machine()

    def written(known: Outcomes) -> list[Path]:
        return report.write(given.output, about, tests, broken, SECTIONS, known, time.time() - start)

    written({})
    outcomes = measured(sizes, end, written)
    print("\nwrote", *written(outcomes))
    for target in report.reached(outcomes):
        print(*target.cells(), sep=" | ")
    rows = [row for outcome in outcomes.values() for row in outcome.rows]
    wrong = sum(bool(row.fault) for row in rows)
    failed = sum(ended.failed for ended in tests.values())
    left = sum(len(outcome.left) for outcome in outcomes.values())
    print(f"{len(rows) - wrong} of {len(rows)} rows right, {left} tasks not reached; {failed} files of tests failed")
    return 1 if wrong or failed or broken or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
