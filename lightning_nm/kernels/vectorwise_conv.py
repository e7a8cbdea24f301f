"""Convolutions with filters of which many consecutive outputs share their inputs, the plain way.

Filters are the matrix ``[O, T * I]`` of `lightning_nm.kernels.vectorwise_nm`, their T taps one after the other: its
inputs are pairs of a tap and a channel. Of grouped convolutions I is the channels of one group, and blocks of outputs
may not straddle groups.
"""

from __future__ import annotations

from math import prod

from torch import Tensor

from lightning_nm.kernels.activation import activated
from lightning_nm.kernels.convolution import Convolution, filters, memory_format
from lightning_nm.kernels.vectorwise_nm import unpack


def convolve(
    x: Tensor,
    values: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    outputs: int,
    convolution: Convolution,
    activation: str = "none",
) -> Tensor:
    """Of x ``[B, C, *sizes]`` of the weight's dtype, whose memory format the result ``[B, O, *sizes]`` has."""
    each = x.shape[1] // convolution.groups
    rows = unpack(values, inputs, (outputs, prod(convolution.kernel) * each))
    out = convolution.dense(x, filters(rows, convolution.kernel), bias)
    return activated(out, activation).contiguous(memory_format=memory_format(x))
