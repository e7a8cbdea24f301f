"""What operators of GPUs (`gpu_ops`, `gpu_conv_ops`) demand of their arguments: see `lightning_nm.sparse.operands`."""

from __future__ import annotations

from math import prod

import torch

from lightning_nm.kernels import bitplane_conv, bitplane_nm, cusparselt, gathered_nm, sparse_mma, vectorwise_nm
from lightning_nm.kernels.activation import ACTIVATIONS
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.sparse.operands import Seen, Shape, check_convolution, check_x, remembered

HALF = (torch.bfloat16, torch.float16)
"""Dtypes of weights and inputs that kernels on a GPU multiply."""


@remembered
def check_gathered(
    x: Seen,
    positions: Seen,
    values: Seen,
    bias: Seen | None,
    n: int,
    m: int,
    in_features: int,
    activation: str = "none",
) -> Shape:
    """Shape of the result."""
    _check_activation(activation)
    outputs = int(values.shape[0]) if values.shape else 0
    _check_rows(x, in_features)
    _check(x, values, bias, outputs, positions)
    layout = gathered_nm.Layout.of(n, m, in_features) if 0 < n <= m and in_features % m == 0 else None
    if layout is None:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit {n}:{m} weights that gather their inputs")
    _check_shape("positions", positions, (outputs, layout.chunks, layout.words), x)
    _check_shape("values", values, (outputs, layout.chunks, layout.pairs, 2 * layout.words), x)
    return (*x.shape[:-1], outputs)


@remembered
def check_bitplane(
    x: Seen,
    values: Seen,
    planes: Seen,
    bias: Seen | None,
    m: int,
    outputs: int,
    in_features: int,
    activation: str = "none",
) -> Shape:
    """Shape of the result."""
    _check_activation(activation)
    _check_rows(x, in_features)
    _check_planes(x, values, planes, bias, m, outputs, in_features, 1)
    return (*x.shape[:-1], outputs)


@remembered
def check_bitplane_conv(
    x: Seen,
    values: Seen,
    planes: Seen,
    bias: Seen | None,
    m: int,
    outputs: int,
    in_features: int,
    convolution: Convolution,
    activation: str = "none",
) -> Shape:
    """Shape of the result."""
    _check_activation(activation)
    _check_channels(x, outputs, in_features, convolution)
    if not bitplane_conv.fits(outputs, convolution.groups):
        raise ValueError(f"{convolution.groups} groups of {outputs} outputs are no whole tiles of {bitplane_nm.ROWS}")
    _check_planes(x, values, planes, bias, m, outputs, in_features, prod(convolution.kernel))
    return (x.shape[0], outputs, *convolution.spatial(x.shape[2:]))


def _check_planes(
    x: Seen, values: Seen, planes: Seen, bias: Seen | None, m: int, outputs: int, inputs: int, taps: int
) -> None:
    _check(x, values, bias, outputs, planes)
    n = int(values.shape[2]) if len(values.shape) == 4 else 0
    if not n or not bitplane_nm.supports(n, m) or inputs % m:
        shapes = f"x of shape {tuple(x.shape)} and values of shape {tuple(values.shape)}"
        raise ValueError(f"{shapes} are not those of N:{m} weights in bit planes")
    filled = -(-outputs // bitplane_nm.ROWS) * bitplane_nm.ROWS
    held = (filled, taps * bitplane_nm.spans(m, inputs), n)
    _check_shape("values", values, (*held, bitplane_nm.GROUPS), x)
    _check_shape("planes", planes, (*held, (m - 1).bit_length()), x)


@remembered
def check_vectorwise(
    x: Seen,
    values: Seen,
    inputs: Seen,
    bias: Seen | None,
    outputs: int,
    in_features: int,
    activation: str = "none",
) -> Shape:
    """Shape of the result."""
    _check_activation(activation)
    _check_rows(x, in_features)
    _check_blocks(x, values, inputs, bias, outputs)
    return (*x.shape[:-1], outputs)


@remembered
def check_vectorwise_conv(
    x: Seen,
    values: Seen,
    inputs: Seen,
    bias: Seen | None,
    outputs: int,
    in_features: int,
    convolution: Convolution,
    activation: str = "none",
) -> Shape:
    """Shape of the result."""
    _check_activation(activation)
    _check_channels(x, outputs, in_features, convolution)
    block = _check_blocks(x, values, inputs, bias, outputs)
    if not vectorwise_nm.fits(block, outputs, convolution.groups):
        raise ValueError(f"{convolution.groups} groups of {outputs} outputs are no whole blocks of {block}")
    return (x.shape[0], outputs, *convolution.spatial(x.shape[2:]))


def _check_blocks(x: Seen, values: Seen, inputs: Seen, bias: Seen | None, outputs: int) -> int:
    """Outputs of a block."""
    _check(x, values, bias, outputs, inputs)
    whole = len(values.shape) == len(inputs.shape) == 2 and 0 not in values.shape and 0 not in inputs.shape
    block = values.shape[0] // inputs.shape[0] if whole else 0
    if block not in vectorwise_nm.ROWS or values.shape[1] % vectorwise_nm.STEP:
        raise ValueError(
            f"values of shape {tuple(values.shape)} and inputs of shape {tuple(inputs.shape)} are not [O, K] and "
            f"[O / R, K], R one of {vectorwise_nm.ROWS} and K a multiple of {vectorwise_nm.STEP}"
        )
    length = int(values.shape[1])
    _check_shape("values", values, (-(-outputs // block) * block, length), x)
    _check_shape("inputs", inputs, (-(-outputs // block), length), x)
    return block


@remembered
def check_sparse_mma(
    x: Seen,
    values: Seen,
    positions: Seen,
    bias: Seen | None,
    outputs: int,
    in_features: int,
    activation: str = "none",
) -> Shape:
    """Shape of the result."""
    _check_activation(activation)
    _check_rows(x, in_features)
    _check(x, values, bias, outputs, positions)
    tiles = sparse_mma.tiles(outputs, in_features)
    _check_shape("values", values, (*tiles, sparse_mma.STEPS, 2, sparse_mma.LANES, 8), x)
    _check_shape("positions", positions, (*tiles, sparse_mma.LANES, sparse_mma.STEPS), x)
    return (*x.shape[:-1], outputs)


@remembered
def check_cusparselt(
    x: Seen, compressed: Seen, bias: Seen | None, outputs: int, in_features: int, activation: str = "none"
) -> Shape:
    """Shape of the result."""
    _check_activation(activation)
    check_x(x, bias, outputs, compressed)
    if x.dtype not in HALF or compressed.dtype != x.dtype:
        raise ValueError(f"x and the weight are bfloat16 or float16, both alike, not {x.dtype} and {compressed.dtype}")
    if outputs % cusparselt.SIDE or in_features % cusparselt.SIDE or x.shape[-1] != in_features:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit a weight of shape {(outputs, in_features)}")
    if compressed.shape.numel() != outputs * in_features * 9 // 16:
        raise ValueError(
            f"{compressed.shape.numel()} numbers are no compressed weight of shape {(outputs, in_features)}"
        )
    return (*x.shape[:-1], outputs)


def _check_rows(x: Seen, in_features: int) -> None:
    if not x.shape or x.shape[-1] != in_features:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit a weight of {in_features} inputs")


def _check_channels(x: Seen, outputs: int, in_features: int, convolution: Convolution) -> None:
    if check_convolution(x, outputs, convolution) != in_features:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit filters of {in_features} inputs")


def _check(x: Seen, values: Seen, bias: Seen | None, outputs: int, indices: Seen) -> None:
    check_x(x, bias, outputs, values, indices)
    if x.dtype not in HALF or values.dtype != x.dtype:
        raise ValueError(f"x and the weight are bfloat16 or float16, both alike, not {x.dtype} and {values.dtype}")
    if indices.dtype != torch.int32:
        raise ValueError(f"indices are int32, not {indices.dtype}")


def _check_activation(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}: one of {', '.join(ACTIVATIONS)}")


def _check_shape(name: str, held: Seen, expected: tuple[int, ...], x: Seen) -> None:
    if held.shape != expected:
        raise ValueError(
            f"{name} of shape {tuple(held.shape)} do not fit x of shape {tuple(x.shape)}: they are {list(expected)}"
        )
