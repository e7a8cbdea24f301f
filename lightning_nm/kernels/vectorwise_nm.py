"""The layout of weights of which many consecutive outputs share their inputs, and the plain way to multiply them.

A weight ``[O, I]`` is cut into blocks of R outputs. Each block keeps the inputs that any of its outputs holds a weight
of, as a dense matrix, whose product costs a share of the dense one's arithmetic too:

    values  [O, K]      the weights of the inputs kept, of the weight's dtype
    inputs  [O / R, K]  int32: which inputs these are, rising

K is that of the fullest block, filled up to a multiple of 64 with zeros of input 0; O is filled up to whole blocks.
Vector-wise N:M weights (V a multiple of R) have K = I N / M, blocks 1xN whatever their fullest block keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.activation import activated

ROWS = (128, 64, 32)
"""Outputs of a block, as kernels take them."""
STEP = 64
"""Inputs that a kernel takes at once."""


def kept(rows: Tensor, block: int) -> Tensor:
    """Bool ``[blocks, I]``: the inputs of which some output of a block holds a weight other than zero."""
    outputs, inputs = rows.shape
    filled = torch.zeros(-(-outputs // block) * block, inputs, dtype=torch.bool, device=rows.device)
    filled[:outputs] = rows != 0
    return filled.view(-1, block, inputs).any(1)


def length(there: Tensor) -> int:
    """K, of what `kept` gave."""
    return max(1, -(-int(there.sum(1).max()) // STEP)) * STEP


def best_block(rows: Tensor) -> tuple[int, float]:
    """(outputs of a block, the share of the weight that is then stored): the least, larger blocks winning ties."""
    shares = {block: length(kept(rows, block)) / rows.shape[1] for block in ROWS}
    return min(shares.items(), key=lambda each: each[1])


def pack(rows: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(values, inputs) of ``rows`` ``[O, I]``, not empty."""
    there = kept(rows, block)
    size = length(there)
    there = F.pad(there, (0, max(0, size - rows.shape[1])))
    order = torch.argsort((~there).byte(), dim=1, stable=True)[:, :size]  # those kept first, rising
    stored = there.gather(1, order)
    inputs = torch.where(stored, order, 0)

    def each(of_blocks: Tensor) -> Tensor:
        return of_blocks.repeat_interleave(block, 0)

    filled = F.pad(rows.detach(), (0, 0, 0, len(there) * block - len(rows)))
    return torch.where(each(stored), filled.gather(1, each(inputs)), 0.0), inputs.int()


def unpack(values: Tensor, inputs: Tensor, shape: tuple[int, int]) -> Tensor:
    """The rows, of ``shape`` ``[O, I]``; its zeros are +0."""
    rows = values.new_zeros(len(values), shape[1])
    each = inputs.repeat_interleave(len(values) // len(inputs), 0).long()
    rows.scatter_add_(1, each, values)  # what fills up adds zeros
    return rows[: shape[0]]


def matmul(
    x: Tensor, values: Tensor, inputs: Tensor, bias: Tensor | None, outputs: int, activation: str = "none"
) -> Tensor:
    """``x @ rows^T + bias`` of x ``[B, I]`` of the weight's dtype, and what is activated of it."""
    return activated(F.linear(x, unpack(values, inputs, (outputs, x.shape[1])), bias), activation)
