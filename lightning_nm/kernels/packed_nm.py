"""The layout of packed N:M weights: what every kernel that multiplies them reads, and the plain way to multiply.

A weight ``[O, I]`` is seen as groups of 16 outputs (the lanes) and windows of up to 16 inputs (32 for M above 16) that
hold whole N:M groups, so that each lane has as many weights in a window as any other. Windows make chunks whose
positions fill whole 32-bit words:

    values     [O / 16, chunks, weights of a chunk, 16]   of the weight's dtype
    positions  [O / 16, chunks, words of a chunk, 16]     int32: 4 bits (8 for M above 16) a weight, low ones first

A position is counted from the start of its window. Outputs and windows are filled up with zeros.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LANES = 16
LARGEST_M = 32


class Layout(NamedTuple):
    """How the inputs of an N:M weight are cut."""

    inputs: int
    group: int
    """M."""
    window: int
    """Inputs in a window."""
    kept: int
    """Weights of one output in a window."""
    windows: int
    """Windows in a chunk."""
    chunks: int

    @staticmethod
    @cache
    def of(n: int, m: int, inputs: int, taps: int = 1) -> Layout:
        """The layout of least bytes; of equal ones that with the longest chunks.

        Windows are as wide as they can be and still make up the inputs; those of a layer without kernel taps may be
        wider than that where they would have half the width or less. Where the inputs are those of several taps, one
        after the other, no window crosses into the next.
        """
        most = max(1, LANES // m)
        groups = max(g for g in range(1, most + 1) if inputs // taps % (g * m) == 0)
        if taps == 1 and groups * 2 <= most:
            groups = most
        kept, every = n * groups, -(-inputs // (m * groups))

        def vectors(windows: int) -> int:
            return -(-every // windows) * (windows * kept + -(-windows * kept // _per_word(m)))

        windows = min(range(_per_word(m), 0, -1), key=vectors)
        return Layout(inputs, m, m * groups, kept, windows, -(-every // windows))

    @property
    def weights(self) -> int:
        """Of one output in a chunk."""
        return self.windows * self.kept

    @property
    def per_word(self) -> int:
        """Positions in a word."""
        return _per_word(self.group)

    @property
    def words(self) -> int:
        """In a chunk."""
        return -(-self.weights // self.per_word)


def _per_word(m: int) -> int:
    return 8 if m <= LANES else 4


def pack(rows: Tensor, mask: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """(values, positions) of ``rows`` ``[O, I]``, whose ``mask`` keeps exactly N of every M."""
    outputs, inputs = rows.shape
    groups = -(-outputs // LANES)
    every = layout.chunks * layout.windows
    n = layout.kept * layout.group // layout.window
    at = mask.nonzero()[:, 1].view(outputs, inputs // layout.group, n)
    kept = rows.detach()[mask].view(at.shape)
    # up to whole windows: groups behind the last input hold zeros in their first places
    values = rows.new_zeros(groups * LANES, every * layout.window // layout.group, n)
    first = torch.arange(values.shape[1], device=rows.device)[:, None] * layout.group % layout.window
    positions = (first + torch.arange(n, device=rows.device)).expand(values.shape).clone()
    values[:outputs, : at.shape[1]], positions[:outputs, : at.shape[1]] = kept, at % layout.window

    def lanes(each: Tensor) -> Tensor:  # [O / 16, chunks, weights, 16]
        return each.view(groups, LANES, layout.chunks, layout.weights).permute(0, 2, 3, 1).contiguous()

    parts = F.pad(lanes(positions), (0, 0, 0, layout.words * layout.per_word - layout.weights))
    shifts = torch.arange(layout.per_word, device=rows.device) * (32 // layout.per_word)
    joined = (parts.unflatten(2, (layout.words, -1)) << shifts[:, None]).sum(3)  # type: ignore[no-untyped-call]
    return lanes(values), joined.to(torch.int32)


def positions_of(positions: Tensor, layout: Layout) -> Tensor:
    """Every weight's position in its window, int64 ``[O / 16, chunks, weights, 16]``."""
    shifts = torch.arange(layout.per_word, device=positions.device) * (32 // layout.per_word)
    parts: Tensor = positions.long()[:, :, :, None] >> shifts[:, None] & (2 ** (32 // layout.per_word) - 1)
    return parts.flatten(2, 3)[:, :, : layout.weights]


def unpack(values: Tensor, positions: Tensor, layout: Layout, outputs: int) -> Tensor:
    """The rows ``[O, I]``."""
    window = torch.arange(layout.chunks * layout.windows, device=values.device) * layout.window
    at = positions_of(positions, layout).unflatten(2, (layout.windows, -1))  # type: ignore[no-untyped-call]
    at = at + window.view(layout.chunks, layout.windows, 1, 1)
    rows = values.new_zeros(len(values) * LANES, layout.chunks * layout.windows * layout.window)

    def by_row(each: Tensor) -> Tensor:
        return each.reshape(len(values), -1, LANES).transpose(1, 2).reshape(len(rows), -1)

    rows.scatter_(1, by_row(at), by_row(values))
    return rows[:outputs, : layout.inputs]


def matmul(x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, layout: Layout, outputs: int) -> Tensor:
    """``x @ rows^T + bias`` for x ``[B, I]``."""
    return F.linear(x, unpack(values, positions, layout, outputs).to(x.dtype), bias)
