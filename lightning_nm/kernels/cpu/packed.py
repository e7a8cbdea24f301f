"""Products with packed weights: which of the compiled kernels does one, by what was measured on AVX-512 (Zen 4).

Rows (sixteen outputs in sixteen lanes) read images with their channels last, columns (sixteen pixels) contiguous ones.
On small maps columns waste lanes, and to turn an image round costs less than it brings.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.kernels.cpu import block_columns, block_matmul, nm_columns, nm_matmul
from lightning_nm.kernels.cpu.emit import LANES
from lightning_nm.kernels.packed_nm import Layout

FEW_ROWS = 8
"""Of x: below it blocks of fewer than 16 outputs are multiplied row by row."""
SMALL_NM, SMALL_BLOCKS = 28 * 28, 14 * 14
"""Pixels of an image on which kernels of more than one tap go by rows."""


def nm_linear(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, layout: Layout, outputs: int
) -> Tensor | None:
    """`lightning_nm.kernels.nm_matmul`; None where no kernel is for it."""
    if not nm_matmul.supports(values):
        return None
    return nm_matmul.matmul(x, values, positions, bias, layout, outputs)


def block_linear(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor | None:
    """`lightning_nm.kernels.block_matmul`; None where no kernel is for it."""
    n = values.shape[1]
    by_rows = block_matmul.supports(values) and (n % LANES == 0 or len(x) < FEW_ROWS)
    if not by_rows and block_columns.supports(values, (len(starts) - 1) * n, 1):
        return block_columns.matmul(x, values, inputs, starts, bias)
    return block_matmul.matmul(x, values, inputs, starts, bias) if block_matmul.supports(values) else None


def nm_convolution(
    x: Tensor,
    values: Tensor,
    positions: Tensor,
    bias: Tensor | None,
    layout: Layout,
    outputs: int,
    convolution: Convolution,
) -> Tensor | None:
    """`lightning_nm.kernels.nm_convolution`; None where no kernel is for it."""
    rows = nm_matmul.supports(values) and nm_matmul.fits(layout, outputs, convolution)
    columns = nm_columns.supports(values, outputs, convolution.groups)
    if columns and not (rows and _by_rows(x, convolution, SMALL_NM)):
        out = nm_columns.convolution(x, values, positions, bias, layout, outputs, convolution)
    elif rows:
        out = nm_matmul.convolution(x, values, positions, bias, layout, outputs, convolution)
    else:
        return None
    return out.contiguous(memory_format=memory_format(x))


def block_convolution(
    x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None, convolution: Convolution
) -> Tensor | None:
    """`lightning_nm.kernels.block_convolution`; None where no kernel is for it."""
    n = values.shape[2]
    rows = block_matmul.supports(values) and block_matmul.fits(starts, convolution) and n % LANES == 0
    columns = block_columns.supports(values, (len(starts) - 1) * n, convolution.groups)
    if columns and not (rows and _by_rows(x, convolution, SMALL_BLOCKS)):
        out = block_columns.convolution(x, values, inputs, starts, bias, convolution)
    elif rows:
        out = block_matmul.convolution(x, values, inputs, starts, bias, convolution)
    else:
        return None
    return out.contiguous(memory_format=memory_format(x))


def _by_rows(x: Tensor, convolution: Convolution, small: int) -> bool:
    if memory_format(x) != torch.contiguous_format:
        return True
    return prod(convolution.kernel) > 1 and prod(convolution.spatial(x.shape[2:])) <= small
