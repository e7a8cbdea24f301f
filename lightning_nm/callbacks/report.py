"""What became sparse and what did not, line by line."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from lightning_nm.callbacks import loggers
from lightning_nm.callbacks.table import Row, print_table
from lightning_nm.training import Selection, SparseWeight, Sparsifier
from lightning_nm.training.selection import skipped_rows

COLUMNS = ("layer", "shape", "pattern", "kept / total", "possible masks", "remarks")


def report_rows(selection: Selection, sparsifier: Sparsifier) -> list[Row]:
    """One row for each selected weight, then one for each skipped one; vectors share a row.

    All processes of sharded weights must call this.
    """
    rows: list[Row] = []
    for weight in sparsifier.weights:
        shape, total, kept = list(weight.param.shape), weight.param.numel(), weight.kept()
        remark = ""
        if sparsifier.schedule.over(weight.steps):
            remark = f"dense again since step {sparsifier.schedule.dense_from}"
        elif weight.mask is None:
            remark = f"dense until step {sparsifier.schedule.start}"
        rows.append((weight.name, shape, weight.pattern, f"{kept:,} / {total:,}", possible_masks(weight), remark))
    return rows + [(name, shape, "dense", "", "", why) for name, shape, why in skipped_rows(selection.skipped)]


def possible_masks(weight: SparseWeight) -> str:
    """How many masks the pattern allows the weight, as a power of ten; a bound where they cannot be counted."""
    try:
        counted, log = "", weight.pattern.log_diversity(weight.param.shape, dim=weight.dim)
    except ValueError:  # too many to be counted; the paper's formula is an upper bound of these (but for 2:M, M > 1412)
        counted, log = "<= ", weight.pattern.log_diversity(weight.param.shape, dim=weight.dim, exact=False)
    return f"{counted}10^{log / math.log(10):,.0f}"


def report_title(selection: Selection, sparsifier: Sparsifier) -> str:
    total = sum(w.param.numel() for w in sparsifier.weights)
    method = type(sparsifier.method).__name__
    return f"N:M sparsity: {len(sparsifier.weights)} weights of {total:,} entries selected, trained by {method}"


def show_report(trainer: Trainer, selection: Selection, sparsifier: Sparsifier, *, printed: bool) -> None:
    """Print the report, if asked to, and give it to the loggers. All processes of sharded weights must call this."""
    rows = report_rows(selection, sparsifier)
    if trainer.is_global_zero:
        if printed:
            print_table(report_title(selection, sparsifier), COLUMNS, rows)
        loggers.log_table(trainer.loggers, "nm/report", COLUMNS, rows, trainer.global_step)
