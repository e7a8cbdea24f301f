"""What a rearrangement says of itself."""

from __future__ import annotations

import torch
from torch import nn

from lightning_nm.callbacks.table import plain_table
from lightning_nm.conversion.rearrangement import Rearranged, Rearrangement, rearrange
from tests.conversion.rearrangement.networks import network


def test_every_dimension_of_every_weight_has_a_row() -> None:
    """But for kernel taps; what stays says why."""
    model, x = network("ViT")
    result = rearrange(model, x, "2:4", budget=2)
    table = plain_table(result.COLUMNS, result.rows())
    for name, param in model.named_parameters():
        for dim, size in enumerate(param.shape[:2] if param.dim() == 4 else param.shape):
            assert param.dim() < 2 or size == 1 or f"{name}[{dim}]" in table, name
    assert all(space.moved or space.reason for space in result.spaces)
    assert "heads" in table


def test_rows() -> None:
    """Spaces in the same weights share a row, and so does what stays for the same reason; the last row is the total."""
    result = Rearrangement(
        [
            Rearranged(("a[0]", "b[1]"), 3, 8, True, "", 0.5, 0.75),
            Rearranged(("c[0]",), 0, 4, False, "no better order was found", 0.25, 0.25),
            Rearranged(("c[0]",), 0, 4, False, "no better order was found", 0.75, 0.75),
            Rearranged(("d[0]",), 1, 3, False, "an input of the network"),
            Rearranged(("e[1]",), 1, 5, False, "an input of the network"),
        ],
        0.5,
        0.625,
        ["a note"],
    )
    assert result.rows() == [
        ("8", "a[0], b[1], 3 vectors", "yes", "50.00%", "75.00%", ""),
        ("2 x 4", "c[0]", "no", "50.00%", "50.00%", "no better order was found"),
        ("3, 5", "d[0], e[1], 2 vectors", "no", "", "", "an input of the network"),
        ("", "", "", "", "", "a note"),
        ("all", "", "", "50.00%", "62.50%", "all selected weights"),
    ]


def test_groups_share_a_row() -> None:
    """A GroupNorm of many groups makes many spaces, and one row."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), nn.Conv2d(32, 4, 1))
    result = rearrange(model, torch.randn(2, 3, 8, 8), "2:4")
    assert sum(space.size == 8 for space in result.spaces) == 4
    assert sum(str(row[0]).startswith(("2 x 8", "3 x 8", "4 x 8")) for row in result.rows()) == 1
