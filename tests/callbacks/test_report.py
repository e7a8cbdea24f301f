"""The report's rows, through the life of a schedule."""

from __future__ import annotations

import torch
from torch import nn

from lightning_nm.callbacks.report import report_rows, report_title
from lightning_nm.training import Schedule, Sparsifier, select


def reported(steps: int) -> list[tuple]:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(3, 2))
    selection = select(model, "1:4")
    sparsifier = Sparsifier(selection, schedule=Schedule(start=1, dense_from=2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sparsifier:
        for _ in range(steps):
            model[0](torch.ones(8)).sum().backward()
            optimizer.step()
    return [tuple(row) for row in report_rows(selection, sparsifier)]


def test_rows_follow_the_schedule():
    """A weight that is dense on purpose says so, before and after."""
    rows = [reported(steps)[0] for steps in (0, 1, 2)]
    assert [row[3] for row in rows] == ["32 / 32", "8 / 32", "32 / 32"]
    assert [row[4] for row in rows] == ["dense until step 1", "", "dense again since step 2"]


def test_every_parameter_is_accounted_for():
    """Skipped weights have a line each, vectors one together."""
    _, skipped, vectors = reported(0)
    assert skipped[:3] == ("1.weight", [2, 3], "dense")
    assert skipped[4] == "the 3 inputs that one output sums over are not a multiple of 4"
    assert vectors[0] == "2 vectors"


def test_title_counts():
    """How much of the model, and by which method."""
    selection = select(nn.Linear(8, 4), "1:4")
    assert report_title(selection, Sparsifier(selection)) == (
        "N:M sparsity: 1 weights of 32 entries selected, trained by SRSTE"
    )
