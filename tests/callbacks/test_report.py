"""The report's rows, through the life of a schedule."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_nm.callbacks.report import COLUMNS, report_rows, report_title
from lightning_nm.patterns import NM
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
    assert [row[5] for row in rows] == ["dense until step 1", "", "dense again since step 2"]


def test_every_parameter_is_accounted_for():
    """Skipped weights have a line each, vectors one together."""
    _, skipped, vectors = reported(0)
    assert skipped[:3] == ("1.weight", [2, 3], "dense")
    assert skipped[5] == "the 3 inputs that one output sums over are not a multiple of 4"
    assert vectors[0] == "2 vectors"


@pytest.mark.parametrize(
    ("pattern", "masks"),
    [
        ("2:4", "10^797"),  # 1024 log10(6)
        ("2:4T", "10^500"),  # 256 log10(90)
        ("2:2", "10^0"),
        ("16:32T", "<= 10^1,579"),  # the paper's formula
        ("8:16T,at_most", "<= 10^1,176"),  # what rows of at most 8 allow: 39,203 each
        (NM(1, 64, transposable=True), "10^89"),  # 64!
    ],
    ids=str,
)
def test_possible_masks(pattern: str | NM, masks: str) -> None:
    """A power of ten; where the masks cannot be counted, a formula, marked as the bound that it is."""
    selection = select(nn.Linear(64, 64), pattern)
    rows = report_rows(selection, Sparsifier(selection))
    assert [row[COLUMNS.index("possible masks")] for row in rows] == [masks, ""]


def test_rows_are_as_long_as_the_header():
    """Whatever a row is about."""
    assert {len(row) for row in reported(0)} == {len(COLUMNS)}


def test_title_counts():
    """How much of the model, and by which method."""
    selection = select(nn.Linear(8, 4), "1:4")
    assert report_title(selection, Sparsifier(selection)) == (
        "N:M sparsity: 1 weights of 32 entries selected, trained by SRSTE"
    )
