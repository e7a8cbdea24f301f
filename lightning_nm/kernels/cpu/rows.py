"""Inputs as rows that kernels read where they lie: those of a matrix, or those that a convolution's output pixels see.

    an input = x[bases[row] + taps[tap] + channel]

A linear layer is one tap; so is a 1x1 convolution, which then reads x itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu.emit import LANES, Kernel, Value, number
from lightning_nm.kernels.cpu.padding import padded

UNITS = 32
"""Into how many the work is cut at least, where it can be: threads that come late find less to do."""


class Rows(NamedTuple):
    bases: Tensor
    """``[rows]``, int64."""
    taps: tuple[int, ...]
    width: int
    """Floats of a row of x, or of one of its pixels."""
    shape: tuple[int, ...]
    """Of the result, without the outputs."""


@lru_cache(256)
def matrix_rows(batch: int, width: int) -> Rows:
    """Of a matrix ``[B, width]``."""
    return Rows(_places((batch,), (width,)), (0,), width, (batch,))


@lru_cache(256)
def pixel_rows(shape: torch.Size, convolution: Convolution, width: int) -> Rows:
    """What each output pixel sees of images of this shape, channels last and ``width`` of them."""
    if any(convolution.padding) or width != shape[1]:  # a copy is made, in whole vectors
        width = -(-width // LANES) * LANES
        # pixels a kilobyte apart would share few sets of the cache: all that a tile of them sees has no room there
        width += LANES if width % 256 == 0 else 0
    steps = [width]  # from one pixel to the next along each dimension
    for size, padding in zip(reversed(shape[2:]), reversed(convolution.padding)):
        steps.insert(0, steps[0] * (size + 2 * padding))
    strides = [step * stride for step, stride in zip(steps[1:], convolution.stride)]
    dilations = [step * dilation for step, dilation in zip(steps[1:], convolution.dilation)]
    sizes = (shape[0], *convolution.spatial(shape[2:]))
    taps = _places(convolution.kernel, tuple(dilations)).tolist()
    return Rows(_places(sizes, (steps[0], *strides)), tuple(taps), width, sizes)


def held_matrix(x: Tensor, rows: Rows) -> Tensor:
    """X ``[B, I]``, or a copy filled up with zeros, as `matrix_rows` counts it."""
    x = x.float()
    return x.contiguous() if x.shape[1] == rows.width else F.pad(x, (0, rows.width - x.shape[1]))


def held_pixels(x: Tensor, rows: Rows, convolution: Convolution) -> Tensor:
    """X ``[B, C, *sizes]`` with its channels last, or a copy between zeros, as `pixel_rows` counts it."""
    pixels = x.movedim(1, -1).float().contiguous()
    if pixels.shape[-1] == rows.width and not any(convolution.padding):
        return pixels
    return padded(pixels, (0, *convolution.padding), rows.width)


@lru_cache(256)
def _places(sizes: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
    """Of entries that lie ``steps`` apart, in order, int64."""
    at = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size, step in zip(sizes, steps):
        at = (at[:, None] + torch.arange(size, device="cpu") * step).flatten()
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

    size: int
    """Rows in a span."""
    spans: int


def spans(total: int, rows: int, columns: int) -> Spans:
    """For tiles of so many rows; ``columns``: into how many units every span falls."""
    tiles = -(-total // rows)
    some = -(-tiles // min(tiles, -(-UNITS // columns)))
    return Spans(some * rows, -(-tiles // some))


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
