"""Inputs as rows that kernels read where they lie: those of a matrix, or those that a convolution's output pixels see.

    an input = x[bases[row] + taps[tap] + channel]

A linear layer is one tap; so is a 1x1 convolution, which then reads x itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu.emit import Kernel, Value, number

UNITS = 32
"""Into how many the work is cut at least, where it can be: threads that come late find less to do."""

LINE = 16
"""Floats in a line of the cache."""


class Rows(NamedTuple):
    x: Tensor
    """float32, contiguous."""
    bases: Tensor
    """``[rows]``, int64."""
    taps: tuple[int, ...]


def of_matrix(x: Tensor, width: int) -> Rows:
    """The rows of x ``[B, I]``, filled up with zeros to ``width``."""
    return Rows(_held(x, (0,), width), _places((x.shape[0],), (width,)), (0,))


def of_pixels(x: Tensor, convolution: Convolution, width: int) -> Rows:
    """What each output pixel of x ``[B, C, *sizes]`` sees, channels last and filled up with zeros to ``width``."""
    if any(convolution.padding):
        # an odd number of cache lines from pixel to pixel: the same inputs of neighbours lie in different sets
        width = (-(-width // LINE) | 1) * LINE
    held = _held(x.movedim(1, -1), (0, *convolution.padding), width)
    return Rows(held, *_pixels(x.shape, convolution, width))


def _held(x: Tensor, padding: Sequence[int], width: int) -> Tensor:
    """Itself, ``[*sizes, C]``, or a copy between zeros."""
    if x.dtype == torch.float32 and x.shape[-1] == width and not any(padding):
        return x.contiguous()
    held = torch.zeros(*(size + 2 * more for size, more in zip(x.shape, padding)), width)
    inside = held
    for dim, more in enumerate(padding):
        inside = inside.narrow(dim, more, x.shape[dim])
    inside.narrow(-1, 0, x.shape[-1]).copy_(x)
    return held


@lru_cache(256)
def _pixels(shape: torch.Size, convolution: Convolution, width: int) -> tuple[Tensor, tuple[int, ...]]:
    """(bases, taps)"""
    steps = [width]  # from one pixel to the next along each dimension
    for size, padding in zip(reversed(shape[2:]), reversed(convolution.padding)):
        steps.insert(0, steps[0] * (size + 2 * padding))
    strides = [step * stride for step, stride in zip(steps[1:], convolution.stride)]
    dilations = [step * dilation for step, dilation in zip(steps[1:], convolution.dilation)]
    bases = _places((shape[0], *convolution.spatial(shape[2:])), (steps[0], *strides))
    return bases, tuple(_places(convolution.kernel, tuple(dilations)).tolist())


@lru_cache(256)
def _places(sizes: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
    """Of entries that lie ``steps`` apart, in order, int64."""
    at = torch.zeros(1, dtype=torch.int64)
    for size, step in zip(sizes, steps):
        at = (at[:, None] + torch.arange(size) * step).flatten()
    return at


def tile_rows(total: int, most: int) -> int:
    """How many rows at a time: those of `most` or little less that leave fewest to do twice."""
    if total <= most:
        return total
    return min(range(most, most // 2, -1), key=lambda rows: -(-total // rows) * rows)


class Spans(NamedTuple):
    """How rows are shared out: by spans of whole tiles, which a kernel takes one by one.

    Where rows do not fill the last tile, it begins earlier and does some of its rows again.
    """

    rows: int
    """In a tile."""
    size: int
    """Rows in a span."""
    spans: int


@lru_cache(1024)
def spans(total: int, rows: int, columns: int) -> Spans:
    """For tiles of so many rows; ``columns``: into how many units every span falls."""
    tiles = -(-total // rows)
    some = -(-tiles // min(tiles, -(-UNITS // columns)))
    return Spans(rows, some * rows, -(-tiles // some))


def each_tile(kernel: Kernel, span: Value, rows: int, size: Value, total: Value, body: Callable[[Value], None]) -> None:
    """``body(first row)`` for every tile of a span of ``size`` rows, of ``total`` ones."""
    b = kernel.builder
    first = b.mul(span, size)
    end = kernel.at_most(b.add(first, size), total)
    last = b.sub(total, number(rows))

    def tile(index: Value, _: list[Value]) -> list[Value]:
        body(kernel.at_most(b.add(first, kernel.times(index, rows)), last))
        return []

    kernel.loop(b.udiv(b.add(b.sub(end, first), number(rows - 1)), number(rows)), [], tile)
