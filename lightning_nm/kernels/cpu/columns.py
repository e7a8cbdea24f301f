"""Columns of a convolution: sixteen lanes are sixteen output pixels whose inputs lie side by side.

x is laid out once, with zeros around and, for strides, phase by phase (every s-th row and column together): what a
kernel tap meets of an input is then the plane of that input, shifted. Pixels are counted over the whole plane, so that
sixteen of them are one vector; those between the end of a row and the beginning of the next are rubbish, and are left
out where results are stored.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from llvmlite import ir
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.cpu.emit import I32, I64, LANES, WORDS, Kernel, Value, number, words
from lightning_nm.kernels.cpu.machine import features


def registers() -> int:
    """How many vectors of sixteen floats the processor holds: AVX2 has half as many as AVX-512, half as wide."""
    return 32 if "avx512f" in features() else 8


class Columns(NamedTuple):
    """The pixels of an image, as vectors."""

    sizes: tuple[int, ...]
    """Of the result."""
    plane: int
    """Floats of one input as laid out."""
    taps: Tensor
    """int64 ``[T]``: how far each tap shifts the plane."""
    starts: Tensor
    """int64 ``[vectors]``: where in the plane a vector starts."""
    lanes: Tensor
    """int32 ``[vectors, 16]``: the lanes that are pixels, in order, then -1."""
    places: Tensor
    """int64 ``[vectors]``: which pixel the first of them is."""
    slack: int
    """Floats behind the last plane that a vector may meet."""
    as_it_is: bool
    """Whether a contiguous image needs no laying out."""

    @property
    def vectors(self) -> int:
        return self.starts.shape[0]

    @property
    def pixels(self) -> int:
        return prod(self.sizes)

    def arguments(self, batch: int, inputs: int, outputs: int) -> tuple[int, ...]:
        """What `tile` reads, for so many planes of an image and of its result."""
        tables = self.starts.data_ptr(), self.lanes.data_ptr(), self.places.data_ptr()
        return (*tables, self.vectors, batch * self.vectors, inputs * self.plane, outputs * self.pixels)


@lru_cache(256)
def columns(sizes: tuple[int, ...], convolution: Convolution) -> Columns:
    """Of images of these sizes."""
    phases, laid = _laid(sizes, convolution)
    pitches = [prod(laid[d + 1 :]) for d in range(len(laid))]
    phase_pitches = [prod(laid) * prod(phases[d + 1 :]) for d in range(len(laid))]
    taps = []
    for tap in product(*map(range, convolution.kernel)):
        shifts = [divmod(t * d, s) for t, d, s in zip(tap, convolution.dilation, convolution.stride)]
        taps.append(sum(s[0] * p + s[1] * q for s, p, q in zip(shifts, pitches, phase_pitches)))
    result = convolution.spatial(sizes)
    pixels = [sum(i * pitch for i, pitch in zip(place, pitches)) for place in product(*map(range, result))]
    last = max(0, pixels[-1] + 1 - LANES)  # where the last vector starts: back over pixels that others do, too
    starts, lanes, places, done = [], [], [], 0
    while done < len(pixels):
        start = min(pixels[done], last)
        first, done = bisect_left(pixels, start), bisect_left(pixels, start + LANES)
        starts.append(start)
        lanes.append([pixel - start for pixel in pixels[first:done]] + [-1] * (LANES - done + first))
        places.append(first)
    slack = max(0, LANES - 1 - pixels[-1])
    return Columns(
        sizes=result,
        plane=prod(phases) * prod(laid),
        taps=torch.tensor(taps, device="cpu"),
        starts=torch.tensor(starts, device="cpu"),
        lanes=torch.tensor(lanes, dtype=torch.int32, device="cpu"),
        places=torch.tensor(places, device="cpu"),
        slack=slack,
        as_it_is=tuple(laid) == sizes and max(convolution.stride) == 1 and not slack,
    )


def _laid(sizes: tuple[int, ...], convolution: Convolution) -> tuple[list[int], list[int]]:
    """(phases, sizes of a phase) of every dimension; where a kernel has one tap it meets only one phase."""
    phases = [1 if kernel == 1 else stride for kernel, stride in zip(convolution.kernel, convolution.stride)]
    laid = [-(-(s + 2 * p) // stride) for s, p, stride in zip(sizes, convolution.padding, convolution.stride)]
    return phases, laid


def lay_out(x: Tensor, convolution: Convolution, found: Columns) -> Tensor:
    """``[B, C, *sizes]`` as float32 ``[B, C, *phases, *sizes]``, itself where it lies like that already."""
    if found.as_it_is:
        return x.float().contiguous()
    dims, sizes = len(convolution.kernel), tuple(x.shape[2:])
    phases, laid = _laid(sizes, convolution)
    wanted = [size * stride for size, stride in zip(laid, convolution.stride)]
    around = [(p, w - s - p) for p, w, s in zip(convolution.padding, wanted, sizes)]
    x = F.pad(x, [side for sides in reversed(around) for side in sides])
    if max(convolution.stride) > 1:
        for d, stride in reversed(list(enumerate(convolution.stride))):
            x = x.unflatten(2 + d, (-1, stride))  # type: ignore[no-untyped-call]
        for d, count in enumerate(phases):
            x = x.narrow(3 + 2 * d, 0, count)
        x = x.permute(0, 1, *(3 + 2 * d for d in range(dims)), *(2 + 2 * d for d in range(dims)))
    x = x.float().contiguous()
    return F.pad(x.flatten(), (0, found.slack)) if found.slack else x


def without_inputs(x: Tensor, bias: Tensor | None, outputs: int, convolution: Convolution) -> Tensor:
    """The result where there is nothing to multiply."""
    sizes = convolution.spatial(x.shape[2:])
    start = x.new_zeros(outputs) if bias is None else bias.to(x.dtype)
    return start.view(outputs, *[1] * len(sizes)).expand(x.shape[0], outputs, *sizes).contiguous()


class Tile(NamedTuple):
    """Vectors of columns that a kernel does at a time."""

    inputs: list[Value]
    """Where in x each of them starts."""
    lanes: list[Value]
    places: list[Value]
    """Where its first pixel lies in the result."""
    whole: Value
    """Whether all their lanes are pixels."""


def tile(kernel: Kernel, argument: int, index: Value, size: int) -> Tile:
    """Of so many vectors, by the arguments from this one on; behind the last vector it comes again."""
    b = kernel.builder
    starts, lanes = kernel.address(argument, I64), kernel.address(argument + 1, I32)
    places = kernel.address(argument + 2, I64)
    every, end, image, result = (kernel.argument(argument + i) for i in range(3, 7))
    found, whole = Tile([], [], [], None), ir.Constant(ir.IntType(1), 1)
    for v in range(size):
        which = kernel.at_most(b.add(kernel.times(index, size), number(v)), b.sub(end, number(1)))
        of = b.udiv(which, every)
        vector = b.sub(which, b.mul(of, every))
        found.inputs.append(b.add(b.mul(of, image), b.load(b.gep(starts, [vector]))))
        found.lanes.append(kernel.load(lanes, kernel.times(vector, LANES), WORDS))
        found.places.append(b.add(b.mul(of, result), b.load(b.gep(places, [vector]))))
        last = b.extract_element(found.lanes[v], I32(LANES - 1))
        whole = b.and_(whole, b.icmp_signed("==", last, I32(LANES - 1)))
    return found._replace(whole=whole)


def store(kernel: Kernel, to: Tile, sums: list[Value], out: Value, offset: Value) -> None:
    """The pixels among the sums of one output, which lies so far behind an image's first."""
    b = kernel.builder

    def all_lanes() -> list[Value]:
        for total, place in zip(sums, to.places):
            kernel.store(total, out, b.add(place, offset))
        return []

    def pixels() -> list[Value]:
        for total, lanes, place in zip(sums, to.lanes, to.places):
            some = b.icmp_signed(">=", lanes, words(0))
            kernel.store_some(kernel.pick([total], lanes), some, out, b.add(place, offset))
        return []

    kernel.either(to.whole, all_lanes, pixels)
