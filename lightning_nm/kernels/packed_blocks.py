"""The plain way to multiply packed 1xN weights: what every kernel must come close to.

values  [blocks, N]     weights of N consecutive outputs and one input
inputs  [blocks]        which input; int16 or int32, rising within a row of blocks
starts  [O / N + 1]     int32: the blocks of row r are those from starts[r] to starts[r + 1]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rows_of(starts: Tensor) -> Tensor:
    """The row of each block, int64."""
    counts = starts.diff().long()
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def unpack(values: Tensor, inputs: Tensor, starts: Tensor, width: int) -> Tensor:
    """The weight ``[O, width]``."""
    rows = values.new_zeros(len(starts) - 1, width, values.shape[1])
    rows[rows_of(starts), inputs.long()] = values
    return rows.transpose(1, 2).reshape(-1, width)


def matmul(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ W^T + bias`` of x ``[B, I]``."""
    return F.linear(x, unpack(values, inputs, starts, x.shape[1]).to(x.dtype), bias)
