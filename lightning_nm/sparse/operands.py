"""What the operators of `lightning_nm.sparse.ops` demand of their arguments.

Each check gives the shape of the result, or raises a ValueError that says what does not fit. Shapes, dtypes and devices
that passed once are remembered: a check is part of every call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.packed_nm import LANES, LARGEST_M, Layout

Shape = tuple[int, ...]


class Seen(NamedTuple):
    """What a check sees of a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def remembered(check: Callable[..., Shape]) -> Callable[..., Shape]:
    """``check``, called with tensors."""
    known = lru_cache(4096)(check)

    def call(*arguments: Any) -> Shape:
        seen = [Seen(a.shape, a.dtype, a.device) if isinstance(a, Tensor) else a for a in arguments]
        try:
            return known(*seen)
        except TypeError:  # sizes that are symbols, while torch traces, cannot be remembered
            return check(*seen)

    return call


@remembered
def check_nm_linear(x: Seen, values: Seen, positions: Seen, bias: Seen | None, n: int, m: int, outputs: int) -> Shape:
    """Shape of the result of a linear layer."""
    check_x(x, bias, outputs, values, positions)
    _check_nm(x, int(x.shape[-1]), 1, values, positions, n, m, outputs)
    return (*x.shape[:-1], outputs)


def _check_nm(x: Seen, inputs: int, taps: int, values: Seen, positions: Seen, n: int, m: int, outputs: int) -> None:
    if not 0 < n <= m <= LARGEST_M or inputs % m:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit {n}:{m} weights of M up to {LARGEST_M}")
    layout = Layout.of(n, m, taps * inputs, taps)
    groups = -(-outputs // LANES)
    for name, held, size in (("values", values, layout.weights), ("positions", positions, layout.words)):
        if held.shape != (groups, layout.chunks, size, LANES):
            raise ValueError(
                f"{name} of shape {tuple(held.shape)} are not those of a {n}:{m} weight of {outputs} outputs, {taps} "
                f"kernel taps and {inputs} inputs, which x of shape {tuple(x.shape)} has"
            )
    if positions.dtype != torch.int32:
        raise ValueError(f"positions are int32, not {positions.dtype}")


@remembered
def check_nm_conv(
    x: Seen,
    values: Seen,
    positions: Seen,
    bias: Seen | None,
    n: int,
    m: int,
    outputs: int,
    convolution: Convolution,
) -> Shape:
    check_x(x, bias, outputs, values, positions)
    inputs = check_convolution(x, outputs, convolution)
    _check_nm(x, inputs, prod(convolution.kernel), values, positions, n, m, outputs)
    return (x.shape[0], outputs, *convolution.spatial(x.shape[2:]))


def check_convolution(x: Seen, outputs: int, convolution: Convolution) -> int:
    """Inputs of one filter."""
    dims = len(convolution.kernel)
    sizes = convolution[:-1]
    if not 1 <= dims <= 3 or any(len(size) != dims for size in sizes) or len(x.shape) != dims + 2:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit {convolution}")
    whole = min(*convolution.kernel, *convolution.stride, *convolution.dilation, convolution.groups) > 0
    if not whole or min(convolution.padding) < 0:
        raise ValueError(f"{convolution} is none")
    if x.shape[1] % convolution.groups or outputs % convolution.groups:
        raise ValueError(f"{x.shape[1]} inputs and {outputs} outputs do not fall into {convolution.groups} groups")
    if min(convolution.spatial(x.shape[2:])) < 1:
        raise ValueError(f"x of shape {tuple(x.shape)} is smaller than the kernel of {convolution}")
    return int(x.shape[1]) // convolution.groups


@remembered
def check_block_linear(x: Seen, values: Seen, inputs: Seen, starts: Seen, bias: Seen | None) -> Shape:
    """Shape of the result of a linear layer."""
    outputs = _check_blocks(x, values, inputs, starts, bias, ("N",))
    return (*x.shape[:-1], outputs)


def _check_blocks(x: Seen, values: Seen, inputs: Seen, starts: Seen, bias: Seen | None, sizes: tuple[str, ...]) -> int:
    """Outputs, of values ``[blocks, *sizes]``."""
    wrong = len(values.shape) != 1 + len(sizes) or inputs.shape != values.shape[:1] or len(starts.shape) != 1
    if wrong or starts.shape[0] < 1:
        shapes = [tuple(t.shape) for t in (values, inputs, starts)]
        expected = ", ".join(("blocks", *sizes))
        raise ValueError(f"values, inputs and starts are [{expected}], [blocks] and [O / N + 1], not {shapes}")
    if inputs.dtype not in (torch.int16, torch.int32) or starts.dtype != torch.int32:
        raise ValueError(f"inputs are int16 or int32 and starts int32, not {inputs.dtype} and {starts.dtype}")
    outputs = (starts.shape[0] - 1) * values.shape[-1]
    check_x(x, bias, outputs, values, inputs, starts)
    return outputs


@remembered
def check_block_conv(
    x: Seen, values: Seen, inputs: Seen, starts: Seen, bias: Seen | None, convolution: Convolution
) -> Shape:
    outputs = _check_blocks(x, values, inputs, starts, bias, ("T", "N"))
    check_convolution(x, outputs, convolution)
    if values.shape[1] != prod(convolution.kernel):
        raise ValueError(f"blocks of {values.shape[1]} kernel taps do not fit {convolution}")
    return (x.shape[0], outputs, *convolution.spatial(x.shape[2:]))


def check_x(x: Seen, bias: Seen | None, outputs: int, *packed: Seen) -> None:
    if not x.shape or not x.dtype.is_floating_point:
        raise ValueError(f"x is [..., inputs] of floating-point numbers, not {x.dtype} of shape {tuple(x.shape)}")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} for {outputs} outputs")
    devices = {tensor.device for tensor in (x, *packed, bias) if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"x, the packed weight and the bias lie on {sorted(map(str, devices))}; move them to one")
