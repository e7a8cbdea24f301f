"""Packed weights against dense ones on a CPU: how much faster a linear layer is, by pattern and batch.

    python benchmarks/packed_linear.py

Every round times each candidate once, in any order; medians. "oneDNN" is the best dense path that torch has, its weight
prepacked; ``F.linear`` (in brackets) is what an eager model runs. Ratios are dense time over ours, fp32, on torch's own
threads, under `torch.inference_mode` as Lightning evaluates. Every result is checked against float64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from lightning_nm.callbacks.table import markdown_table
from lightning_nm.patterns import NM, Block1xN, parse
from lightning_nm.sparse import pack
from lightning_nm.sparse.timing import take_turns

PATTERNS = ("2:4", "1:4", "1:8", "1:16", "1x16@0.5", "1x16@0.75", "1x32@0.5", "1x32@0.75")


def medians(candidates: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    for candidate in candidates:
        candidate()  # compiles
    timings = take_turns({str(at): candidate for at, candidate in enumerate(candidates)}, seconds)
    return [timing.median for timing in timings.values()]


def measure(pattern: NM | Block1xN, size: tuple[int, int], batch: int, seconds: float) -> tuple[float, float]:
    """(speed over prepacked oneDNN, speed over F.linear)."""
    torch.manual_seed(0)
    dense = torch.randn(size)
    weight, bias, x = torch.where(pattern.mask(dense), dense, 0.0), torch.randn(size[0]), torch.randn(batch, size[1])
    ours = pack(weight, pattern)
    prepacked = torch.ops.mkldnn._reorder_linear_weight(weight, batch)
    expected = (x.double() @ weight.double().T + bias).float()
    torch.testing.assert_close(ours.linear(x, bias), expected, atol=1e-2, rtol=1e-3)
    sparse, best, eager = medians(
        [
            lambda: ours.linear(x, bias),
            lambda: torch.ops.mkldnn._linear_pointwise(x, prepacked, bias, "none", [], ""),
            lambda: F.linear(x, weight, bias),
        ],
        seconds,
    )
    return best / sparse, eager / sparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=2, default=(4096, 4096), metavar=("OUT", "IN"))
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4, 16, 64, 256))
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell")
    given = parser.parse_args()
    print(f"{given.size[0]} x {given.size[1]}, fp32, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    rows = []
    for written in given.patterns:
        pattern = parse(written)
        assert isinstance(pattern, (NM, Block1xN))
        cells = [measure(pattern, tuple(given.size), batch, given.seconds) for batch in given.batches]
        rows.append((written, *[f"{best:.2f} ({eager:.1f})" for best, eager in cells]))
    print(markdown_table(("pattern", *[f"batch {batch}" for batch in given.batches]), rows))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
