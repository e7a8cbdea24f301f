"""Zeros around images: what convolutions read instead of asking where an image ends."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.cpu import threads
from lightning_nm.kernels.cpu.emit import I64, LANES, Kernel, Value, number, zeros
from lightning_nm.kernels.cpu.machine import compiled

_X, _OUT, _LINES, _BEFORE, _SIZE, _AFTER, _CHANNELS, _VECTORS = range(2, 10)


@cache
def _kernel() -> Callable[[int], None]:
    """A unit is one line of pixels, along the last dimension."""
    kernel = Kernel("padding")
    b = kernel.builder
    x, out, lines = kernel.address(_X), kernel.address(_OUT), kernel.address(_LINES, I64)
    before, size, after = (kernel.argument(at) for at in (_BEFORE, _SIZE, _AFTER))
    channels, vectors = kernel.argument(_CHANNELS), kernel.argument(_VECTORS)
    every = kernel.sum(before, size, after)

    def unit(line: Value) -> None:
        source = b.load(b.gep(lines, [line]))
        inside = b.select(b.icmp_signed("<", source, number(0)), number(0), size)  # a line of zeros has no pixels
        place = kernel.times(b.mul(line, every), vectors)

        def pixel(index: Value, _: list[Value]) -> list[Value]:
            first = b.add(source, b.mul(index, channels))
            target = b.add(place, b.mul(b.add(before, index), vectors))

            def vector(v: Value, _: list[Value]) -> list[Value]:
                at = kernel.times(v, LANES)
                some = kernel.load_some(x, b.add(first, at), kernel.first(b.sub(channels, at)))
                kernel.store(some, out, kernel.times(b.add(target, v), LANES))
                return []

            kernel.loop(vectors, [], vector)
            return []

        def clear(start: Value, pixels: Value) -> None:
            def vector(v: Value, _: list[Value]) -> list[Value]:
                kernel.store(zeros(), out, kernel.times(b.add(start, v), LANES))
                return []

            kernel.loop(b.mul(pixels, vectors), [], vector)

        clear(place, before)
        kernel.loop(inside, [], pixel)
        end = b.add(before, inside)
        clear(b.add(place, b.mul(end, vectors)), b.sub(every, end))

    return compiled(kernel.units(unit), kernel.name)


@lru_cache(256)
def _lines(shape: torch.Size, padding: tuple[int, ...]) -> Tensor:
    """Where in x each line of the result starts; -1: it is one of zeros."""
    *sizes, size, channels = shape
    at = torch.arange(torch.Size(sizes).numel(), device="cpu").view(sizes) * (size * channels)
    around = [more for each in reversed(padding[:-1]) for more in (each, each)]
    return F.pad(at, around, value=-1).flatten()


def padded(x: Tensor, padding: tuple[int, ...], width: int) -> Tensor:
    """X ``[*sizes, C]``, contiguous and float32, between so many zeros, and its channels filled up to ``width``.

    Args:
        width: a multiple of 16.
    """
    out = x.new_empty(*(size + 2 * more for size, more in zip(x.shape, padding)), width)
    if not out.numel():
        return out
    lines = _lines(x.shape, padding)
    addresses = x.data_ptr(), out.data_ptr(), lines.data_ptr()
    sizes = padding[-1], x.shape[-2], padding[-1], x.shape[-1], width // LANES
    threads.run(_kernel(), lines.shape[0], (*addresses, *sizes))
    return out
