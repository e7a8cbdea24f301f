"""A weight as M x M tiles of (outputs, inputs), and magnitudes as whole numbers.

All solvers work on whole numbers, so that every sum over a tile is exact: the mask depends on no order of
summation, batch or device. Shapes: B tiles; scores float64 ``[B, M, M]``, masks bool ``[B, M, M]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -(2.0**52)  # less than any sum of scores, and still exact when two are added


def units(m: int) -> float:
    """Scores count in this fraction of their tile's largest magnitude.

    Fine beside the 24 bits of a float32, and coarse enough for a whole tile's sum, times M, to stay below 2^50.
    """
    return 2.0 ** min(40, 50 - 3 * (m - 1).bit_length())


def scores_of(tiles: Tensor) -> Tensor:
    """Magnitudes in whole units. NaN and infinity count as nothing and as the largest: their mask means nothing."""
    wide = torch.nan_to_num(tiles.double().abs(), nan=0.0, posinf=torch.finfo(torch.float64).max)
    largest = wide.amax((1, 2), keepdim=True)
    return torch.round(wide / torch.where(largest > 0, largest, 1.0) * units(tiles.shape[1]))


def tiles_of(weight: Tensor, m: int, inputs: int, outputs: int) -> Tensor:
    """The M x M tiles of (outputs, inputs) at every tap: ``[B, M, M]``."""
    rows = weight.movedim((outputs, inputs), (-2, -1))
    tiles: Tensor = rows.unflatten(-1, (-1, m)).unflatten(-3, (-1, m)).transpose(-3, -2)  # type: ignore[no-untyped-call]
    return tiles.reshape(-1, m, m)


def untiled(masks: Tensor, shape: torch.Size, inputs: int, outputs: int) -> Tensor:
    """`tiles_of` backwards, for a weight of ``shape``."""
    m = masks.shape[1]
    taps = [size for dim, size in enumerate(shape) if dim not in (inputs, outputs)]
    tiles = masks.view(*taps, shape[outputs] // m, shape[inputs] // m, m, m)
    rows = tiles.transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
    return rows.movedim((-2, -1), (outputs, inputs)).contiguous()
