"""Tiles are blocks of true (outputs, inputs), and scores are whole numbers."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.kernels.transposable.layout import scores_of, tiles_of, units, untiled
from tests.kernels.transposable.cases import ODD_TILES, tiles_of_kind


@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"), [((8, 12), 1, 0), ((12, 8), 0, 1), ((8, 4, 3, 3), 1, 0), ((4, 8, 5), 0, 1)]
)
def test_tiles_are_those_of_outputs_and_inputs(shape: tuple[int, ...], inputs: int, outputs: int) -> None:
    """Every tile is a block of true (outputs, inputs) at one tap, and comes back to its place."""
    weight = torch.arange(torch.Size(shape).numel()).view(shape)
    cut = tiles_of(weight, 4, inputs, outputs)
    assert cut.shape == (weight.numel() // 16, 4, 4)
    rows = weight.movedim((outputs, inputs), (0, 1)).reshape(shape[outputs], shape[inputs], -1)  # [O, I, T]
    blocks = {
        tuple(rows[o : o + 4, i : i + 4, t].flatten().tolist())
        for o in range(0, rows.shape[0], 4)
        for i in range(0, rows.shape[1], 4)
        for t in range(rows.shape[2])
    }
    assert {tuple(tile.flatten().tolist()) for tile in cut} == blocks
    assert torch.equal(untiled(cut, weight.shape, inputs, outputs), weight)


@pytest.mark.parametrize("kind", ODD_TILES)
@pytest.mark.parametrize("m", [4, 8, 64])
def test_scores_are_whole(m: int, kind: str) -> None:
    """And so small that M times a tile's sum is exact in float64."""
    scores = scores_of(tiles_of_kind(kind, 5, m))
    assert torch.equal(scores, scores.round())
    assert float(scores.min()) >= 0
    assert float(scores.sum((1, 2)).max()) * m <= 2.0**50


def test_scores_are_the_magnitudes() -> None:
    """As fractions of the tile's largest, at least as fine as a float32's mantissa."""
    tiles = torch.randn(5, 8, 8)
    fractions = tiles.abs().double() / tiles.abs().double().amax((1, 2), keepdim=True)
    assert float((scores_of(tiles) / units(8) - fractions).abs().max()) <= 2.0**-26


def test_scores_of_what_is_no_number() -> None:
    """A tile with NaN or infinity has scores too, so that a solver ends: whoever calls counts such entries."""
    tiles = torch.ones(1, 2, 2)
    tiles[0, 0, 0], tiles[0, 0, 1] = torch.nan, -torch.inf
    assert scores_of(tiles).tolist() == [[[0.0, units(2)], [0.0, 0.0]]]
