"""What became sparse and what did not, line by line."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_nm.callbacks.table import Row
from lightning_nm.kernels import compiled_cpu
from lightning_nm.training import Selection, Sparsifier
from lightning_nm.training.layers import VECTOR

COLUMNS = ("layer", "shape", "pattern", "kept / total", "remarks")


def report_rows(selection: Selection, sparsifier: Sparsifier) -> list[Row]:
    """One row for each selected weight, then one for each skipped one; vectors share a row."""
    rows: list[Row] = []
    for weight in sparsifier.weights:
        shape, total = list(weight.param.shape), weight.param.numel()
        kept = total if weight.mask is None else int(weight.mask.kept())
        remark = ""
        if sparsifier.schedule.over(weight.steps):
            remark = f"dense again since step {sparsifier.schedule.dense_from}"
        elif weight.mask is None:
            remark = f"dense until step {sparsifier.schedule.start}"
        rows.append((weight.name, shape, weight.pattern, f"{kept:,} / {total:,}", remark))
    for skipped in selection.skipped:
        if skipped.reason != VECTOR:
            rows.append((skipped.name, list(skipped.shape), "dense", "", skipped.reason))
    vectors = sum(skipped.reason == VECTOR for skipped in selection.skipped)
    if vectors:
        rows.append((f"{vectors} vectors", "", "dense", "", "biases and scales: no GEMM sums over them"))
    return rows


def report_title(selection: Selection, sparsifier: Sparsifier) -> str:
    total = sum(w.param.numel() for w in sparsifier.weights)
    method = type(sparsifier.method).__name__
    return f"N:M sparsity: {len(sparsifier.weights)} weights of {total:,} entries selected, trained by {method}"


_AVERAGING = {"WeightAveraging", "StochasticWeightAveraging"}


def cautions(callbacks: Iterable[object]) -> list[str]:
    """What the user should know before training: things that cost sparsity or speed in silence."""
    said = [
        f"{type(callback).__name__} averages weights of different masks; the averaged weights, which it validates and "
        "saves, are not sparse"
        for callback in callbacks
        if _AVERAGING & {c.__name__ for c in type(callback).__mro__}
    ]
    if compiled_cpu() is None:
        said.append("numba does not import, so masks on a CPU are found by plain torch, several times slower")
    return said
