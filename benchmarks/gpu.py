"""The GPU gate: the kernels' tests on this card, then every backend against cuBLAS, checked and timed.

    python benchmarks/gpu.py

Needs a CUDA card, torch, triton, lightning and torchmetrics; the tests need pytest besides, and without it are reported
as not run. It takes less than eight minutes: what is not reached in time is named. Times are the card's own, medians
with their quartiles, of bfloat16 products that find nothing of their operands in its caches; every result is held
against float64 and wrong ones are not timed. Writes benchmarks/gpu-<card>.json and .md.

Exit status 0: all is right; 1: a test failed or a result was wrong; 2: there is no CUDA card.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # nothing need be installed

from lightning_nm.callbacks.table import markdown_table  # noqa: E402
from lightning_nm.patterns import NM, parse  # noqa: E402
from lightning_nm.sparse.backends import backends_for  # noqa: E402
from lightning_nm.sparse.comparison import Comparison, compare  # noqa: E402

TESTS = (
    "tests/kernels/triton/test_gathered_nm.py",
    "tests/kernels/triton/test_bitplane_nm.py",
    "tests/kernels/triton/test_vectorwise_nm.py",
    "tests/kernels/triton/test_finish.py",
    "tests/kernels/triton/test_split.py",
    "tests/kernels/triton/test_split_sizes.py",
    "tests/kernels/triton/test_nm_mask.py",
    "tests/kernels/triton/test_transposable.py",
    "tests/kernels/triton/test_densify.py",
    "tests/kernels/triton/test_masks.py",
    "tests/sparse/test_gpu_ops.py",
    "tests/sparse/test_gpu_backends.py",
    "tests/sparse/test_cusparselt.py",
    "tests/sparse/test_timing.py",
    "tests/kernels/test_init.py",
    "tests/conversion/test_adaprune.py",
    "tests/cli/test_bench.py",
)
_NOTHING_TO_RUN = 5  # pytest's exit status: a file whose needs are not installed
SIZES = ((14336, 4096), (4096, 4096), (28672, 8192))
PATTERNS = ("2:4", "1:4", "1:8", "1:16", "2:4V64", "1:4V64", "1:4V128")
BATCHES = tuple(1 << power for power in range(14))
READING = (
    "Medians of the card's own clock in us (first and third quartile), bfloat16, caches flushed before each call; "
    "dense is cuBLAS. 'over dense': how many times as fast the fastest sparse backend is, without the time that a "
    "host takes to issue it. 'auto' minds that time too."
)


class Row(NamedTuple):
    """One product by all backends."""

    size: tuple[int, int]
    pattern: str
    batch: int
    compared: Comparison

    def record(self) -> dict[str, Any]:
        """As JSON holds it, times in seconds."""
        compared = self.compared
        return {
            "size": self.size,
            "pattern": self.pattern,
            "batch": self.batch,
            "times": {name: timing._asdict() for name, timing in compared.times.items()},
            "over_dense": compared.over("dense"),
            "refusals": compared.refusals,
            "wrong": compared.wrong,
            "auto": asdict(compared.auto) if compared.auto else None,
        }

    def cells(self, backends: Sequence[str]) -> list[str]:
        compared = self.compared
        shown = [
            f"{t.median * 1e6:.1f} ({t.low * 1e6:.1f}-{t.high * 1e6:.1f})" if (t := compared.times.get(name)) else "-"
            for name in backends
        ]
        over = compared.over("dense")
        ratio = "-" if over is None else f"{over:.2f}"
        wrong = "; ".join(f"{name}: {fault}" for name, fault in compared.wrong.items())
        auto = compared.auto.backend if compared.auto else "-"
        return ["x".join(map(str, self.size)), self.pattern, str(self.batch), *shown, ratio, auto, wrong or "right"]


def tested() -> dict[str, str]:
    """By file: how its tests ended. The files run side by side, for they mostly wait for compilers."""
    if find_spec("pytest") is None:
        return dict.fromkeys(TESTS, "not run: pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    running = {
        file: subprocess.Popen([*command, file], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for file in TESTS
    }
    ended = {}
    for file, process in running.items():
        said = process.communicate()[0]
        right = process.returncode in (0, _NOTHING_TO_RUN)
        ended[file] = said.strip().splitlines()[-1] if right else f"FAILED\n{said[-4000:]}"
        print(f"{file}: {ended[file]}", flush=True)
    return ended


def measured(sizes: Sequence[tuple[int, int]], seconds: float, until: float, device: str = "cuda") -> Iterator[Row]:
    """Every product that is reached in time, those of a batch together."""
    for size in sizes:
        weights = {written: _weight(size, written, device) for written in PATTERNS}
        for batch in BATCHES:
            x = torch.randn(batch, size[1], device=device).bfloat16()
            for written, (weight, pattern) in weights.items():
                if time.monotonic() > until:
                    return
                yield Row(size, written, batch, compare(weight, pattern, 1, x, seconds=seconds))


def _weight(size: tuple[int, int], written: str, device: str) -> tuple[Tensor, NM]:
    pattern = parse(written)
    assert isinstance(pattern, NM)
    dense = torch.randn(size, device=device, generator=torch.Generator(device).manual_seed(0)).bfloat16()
    return torch.where(pattern.mask(dense), dense, 0.0), pattern


def machine() -> dict[str, str]:
    """What runs here, and when."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    about = {"card": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}
    about["cusparselt"] = str(torch.backends.cusparselt.version())
    for package in ("torch", "triton", "lightning", "torchmetrics"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = "not installed"
    about["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return about


def write(folder: Path, about: dict[str, str], tests: dict[str, str], rows: Sequence[Row], left: int) -> list[Path]:
    """The JSON and the Markdown file."""
    name = re.sub(r"[^a-z0-9]+", "-", about["card"].lower()).strip("-")
    files = [folder / f"gpu-{name}.{kind}" for kind in ("json", "md")]
    held = {"machine": about, "tests": tests, "rows": [row.record() for row in rows], "left": left}
    files[0].write_text(json.dumps(held, indent=1) + "\n")
    backends = list(backends_for(torch.device("cuda")))
    columns = ["weight", "pattern", "batch", *backends, "over dense", "auto", "results"]
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    ended = "\n".join(f"- {file}: {said}" for file, said in tests.items())
    not_reached = f"\n{left} more products were not reached in time.\n" if left else ""
    table = markdown_table(columns, [row.cells(backends) for row in rows])
    files[1].write_text(f"{words}\n\n{ended}\n\n{READING}\n{not_reached}\n{table}\n")
    return files


def main(args: Sequence[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-tests", action="store_true", help="measure only")
    parser.add_argument("--seconds", type=float, default=0.15, help="of measuring, for each product (default 0.15)")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything (default 7.5)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, metavar="DIR")
    given = parser.parse_args(args)
    if not torch.cuda.is_available():
        print("no CUDA card: the GPU gate measures nothing here", file=sys.stderr)
        return 2
    until = time.monotonic() + given.minutes * 60
    tests = {} if given.no_tests else tested()
    rows = []
    with torch.inference_mode():
        for row in measured(SIZES, given.seconds, until):
            rows.append(row)
            print(*row.cells(list(backends_for(torch.device("cuda")))), sep=" | ", flush=True)
    left = len(SIZES) * len(PATTERNS) * len(BATCHES) - len(rows)
    print("wrote", *write(given.output, machine(), tests, rows, left))
    wrong = sum(bool(row.compared.wrong) for row in rows)
    failed = sum(said.startswith("FAILED") for said in tests.values())
    print(f"{len(rows) - wrong} of {len(rows)} products right, {left} not reached; {failed} files of tests failed")
    return 1 if wrong or failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
