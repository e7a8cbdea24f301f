"""Convolutions with N:M filters whose positions lie in bit planes: their layout, and the plain way.

Filters are a matrix ``[O, T * I]``, T taps one after the other, of which each tap is filled up to whole spans of
`lightning_nm.kernels.bitplane_nm`, so that what a kernel takes at once is of one tap. Of grouped convolutions I is the
channels of one group, whose outputs fill whole tiles.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels import bitplane_nm
from lightning_nm.kernels.activation import activated
from lightning_nm.kernels.bitplane_nm import GROUPS, ROWS
from lightning_nm.kernels.convolution import Convolution, filters, memory_format


def fits(outputs: int, groups: int) -> bool:
    """Whether the tiles of kernels straddle no groups."""
    return groups == 1 or outputs // groups % ROWS == 0


def filled(m: int, inputs: int) -> int:
    """Inputs of a tap, filled up to whole spans."""
    return bitplane_nm.spans(m, inputs) * GROUPS * m


def pack(rows: Tensor, mask: Tensor, taps: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    """(values, planes) of ``rows`` ``[O, T * I]`` of a 16-bit dtype, whose ``mask`` keeps exactly N of every M."""
    inputs = rows.shape[1] // taps
    size = filled(m, inputs)
    there = (torch.arange(size, device=rows.device) % m < n).repeat(len(rows), taps, 1)
    there[:, :, :inputs] = mask.view(len(rows), taps, inputs)
    held = F.pad(rows.detach().reshape(len(rows), taps, inputs), (0, size - inputs))
    return bitplane_nm.pack(held.flatten(1), there.flatten(1), n, m)


def unpack(values: Tensor, planes: Tensor, m: int, shape: tuple[int, int], taps: int, dtype: torch.dtype) -> Tensor:
    """The rows, of ``shape`` ``[O, T * I]``."""
    outputs, inputs = shape[0], shape[1] // taps
    size = filled(m, inputs)
    rows = bitplane_nm.unpack(values, planes, m, (outputs, taps * size), dtype)
    return rows.view(outputs, taps, size)[..., :inputs].flatten(1)


def convolve(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    convolution: Convolution,
    activation: str = "none",
) -> Tensor:
    """Of x ``[B, C, *sizes]`` of the weight's dtype, whose memory format the result ``[B, O, *sizes]`` has."""
    taps = prod(convolution.kernel)
    rows = unpack(values, planes, m, (outputs, taps * x.shape[1] // convolution.groups), taps, x.dtype)
    out = convolution.dense(x, filters(rows, convolution.kernel), bias)
    return activated(out, activation).contiguous(memory_format=memory_format(x))
