"""The table of a conversion."""

from __future__ import annotations

from torch import nn

from lightning_nm import select
from lightning_nm.conversion import Conversion, one_shot


def test_every_parameter_has_its_row() -> None:
    """Selected weights, skipped ones with their reasons, and the vectors together."""
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 6), nn.Linear(6, 2))
    rows = one_shot(select(model, "2:4")).rows()
    assert all(len(row) == len(Conversion.COLUMNS) for row in rows)
    assert [row[0] for row in rows] == ["1.weight", "0.weight", "2.weight", "2 vectors"]
    assert [str(row[2]) for row in rows] == ["2:4", "dense", "dense", "dense"]
    assert rows[1][-1] == "a lookup table: no GEMM sums over it"
    assert rows[2][-1] == "the 6 inputs that one output sums over are not a multiple of 4"


def test_numbers_are_short() -> None:
    """Errors in percent, empty where not measured."""
    conversion = one_shot(select(nn.Linear(4, 4), "2:4"))
    weight = conversion.weights[0]._replace(retained=0.75, masked_error=0.12345, error=0.01)
    assert Conversion([weight], []).rows()[0][3:6] == ("75.0%", "12.35%", "1.00%")
    assert conversion.rows()[0][4:6] == ("", "")


def test_the_record_is_builtins() -> None:
    """It is loaded with weights_only=True."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ConvTranspose1d(4, 4, 1))
    record = one_shot(select(model, "2:4", overrides={"0": "2:4T"})).record()
    assert record == {"0.weight": {"pattern": "2:4T", "dim": 1}, "1.weight": {"pattern": "2:4", "dim": 0}}
