"""The layout of N:M weights for a product that gathers its inputs, and the plain way to multiply it.

A weight ``[O, I]`` is cut along its inputs into chunks of ``words`` x ``groups`` groups of M. Word w of a chunk has the
positions of groups w, w + words, w + 2 words, ...: so lanes that take neighbouring words read neighbouring inputs.

    positions  [O, chunks, words]          int32: the first weight of the first group in the lowest bits
    values     [O, chunks, pairs, words]   int32: two weights of 16 bits, in the order of their positions
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.activation import activated

LARGEST_BATCH = 8
"""Rows of x that kernels are made for."""


class Layout(NamedTuple):
    """How the inputs of an N:M weight are cut."""

    inputs: int
    n: int
    m: int
    bits: int
    """Of a position."""
    groups: int
    """Of a word."""
    words: int
    """Of a chunk."""
    chunks: int

    @staticmethod
    @cache
    def of(n: int, m: int, inputs: int) -> Layout | None:
        """The layout of least bytes; None where the positions of a group, or of two weights, do not fit a word."""
        bits = max(1, (m - 1).bit_length())
        fitting = [
            Layout(inputs, n, m, bits, groups, words, -(-inputs // (m * groups * words)))
            for groups in range(32 // (n * bits), 0, -1)
            if n * groups % 2 == 0  # weights come in pairs
            for words in (128, 64, 32, 16)
        ]
        return min(fitting, key=lambda layout: layout.chunks * layout.words * (1 + layout.pairs), default=None)

    @property
    def pairs(self) -> int:
        """Of weights, of a word."""
        return self.groups * self.n // 2

    @property
    def filled(self) -> int:
        """Inputs, filled up to whole chunks."""
        return self.chunks * self.words * self.groups * self.m


def pack(rows: Tensor, mask: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """(positions, values) of ``rows`` ``[O, I]`` of a 16-bit dtype, whose ``mask`` keeps exactly N of every M."""
    outputs, (_, n, m, bits, groups, words, chunks) = len(rows), layout
    filled = (outputs, chunks * groups * words, n)
    at, kept = torch.zeros(filled, dtype=torch.int32, device=rows.device), rows.new_zeros(filled)
    there = layout.inputs // m
    at[:, :there] = (mask.nonzero()[:, 1].view(outputs, there, n) % m).int()
    kept[:, :there] = rows.detach()[mask].view(outputs, there, n)

    def by_word(each: Tensor) -> Tensor:  # [O, chunks, weights of a word, words]
        return each.view(outputs, chunks, groups, words, n).transpose(3, 4).flatten(2, 3)

    shifts = torch.arange(groups * n, device=rows.device)[:, None] * bits
    positions = (by_word(at).long() << shifts).sum(2).to(torch.int32)
    halves = by_word(kept.view(torch.int16).int() & 0xFFFF)
    return positions.contiguous(), (halves[:, :, ::2] | halves[:, :, 1::2] << 16).contiguous()


def unpack(positions: Tensor, values: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The rows ``[O, I]``."""
    outputs, (inputs, n, m, bits, groups, words, chunks) = len(values), layout
    shifts = torch.arange(groups * n, device=values.device)[:, None] * bits
    at = positions[:, :, None] >> shifts & (1 << bits) - 1
    halves = torch.stack((values, values >> 16), 3).flatten(2, 3).to(torch.int16).view(dtype)

    def by_group(each: Tensor) -> Tensor:  # [O, every group, n]
        return each.view(outputs, chunks, groups, n, words).transpose(3, 4).reshape(outputs, -1, n)

    rows = halves.new_zeros(outputs, chunks * groups * words, m)
    rows.scatter_add_(2, by_group(at).long(), by_group(halves))  # groups behind the last input add zeros
    return rows.flatten(1)[:, :inputs]


def matmul(
    x: Tensor, positions: Tensor, values: Tensor, bias: Tensor | None, layout: Layout, activation: str = "none"
) -> Tensor:
    """``x @ rows^T + bias`` of x ``[B, I]`` of the weight's dtype, and what is activated of it."""
    return activated(F.linear(x, unpack(positions, values, layout, x.dtype), bias), activation)
