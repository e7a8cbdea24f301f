"""What the operators of `lightning_nm.sparse.gpu_ops` demand of their arguments: see `lightning_nm.sparse.operands`."""

from __future__ import annotations

import torch

from lightning_nm.kernels import bitplane_nm, cusparselt, gathered_nm, sparse_mma, vectorwise_nm
from lightning_nm.kernels.activation import ACTIVATIONS
from lightning_nm.sparse.operands import Seen, Shape, check_x, remembered

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
    _check(x, values, bias, outputs, positions, in_features)
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
    _check(x, values, bias, outputs, planes, in_features)
    n = int(values.shape[2]) if len(values.shape) == 4 else 0
    if not n or not bitplane_nm.supports(n, m) or in_features % m:
        shapes = f"x of shape {tuple(x.shape)} and values of shape {tuple(values.shape)}"
        raise ValueError(f"{shapes} are not those of N:{m} weights in bit planes")
    filled = -(-outputs // bitplane_nm.ROWS) * bitplane_nm.ROWS
    held = (filled, bitplane_nm.spans(m, in_features), n)
    _check_shape("values", values, (*held, bitplane_nm.GROUPS), x)
    _check_shape("planes", planes, (*held, (m - 1).bit_length()), x)
    return (*x.shape[:-1], outputs)


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
    _check(x, values, bias, outputs, inputs, in_features)
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
    return (*x.shape[:-1], outputs)


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
    _check(x, values, bias, outputs, positions, in_features)
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


def _check(x: Seen, values: Seen, bias: Seen | None, outputs: int, indices: Seen, in_features: int) -> None:
    check_x(x, bias, outputs, values, indices)
    if x.shape[-1] != in_features:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit a weight of {in_features} inputs")
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
