"""The layout of N:M weights whose positions lie in bit planes, and the plain way to multiply it.

For N up to 2 and M a power of two up to 16. Of each of the N weights of a group (in the order of their inputs) and 32
consecutive groups, a span of 32 M inputs:

    values  [O, spans, N, 16]     int32: the 16-bit weights of groups q and q + 16 in word q
    planes  [O, spans, N, BITS]   int32: bit g of word b is bit b of the position of group g

So one logical operation on a plane decides for 32 groups. Inputs, whose order a product need not keep, are taken span
by span as (q, position, half): `ordered`. Outputs and spans are filled up with zeros: kernels need not ask where they
end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels.activation import activated

GROUPS = 32
"""Of a span."""
ROWS = 64
"""Outputs are filled up to a multiple: those of one program, and of one tensor core instruction."""


def supports(n: int, m: int) -> bool:
    return n <= 2 and m in (2, 4, 8, 16)


def spans_at_once(m: int) -> int:
    """That a kernel takes in one step: 256 inputs, or one span; more find no registers."""
    return max(1, 8 // m)


def spans(m: int, inputs: int) -> int:
    step = spans_at_once(m)
    return -(-inputs // (GROUPS * m * step)) * step


def pack(rows: Tensor, mask: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """(values, planes) of ``rows`` ``[O, I]`` of a 16-bit dtype, whose ``mask`` keeps exactly N of every M."""
    outputs, inputs = rows.shape
    filled = (-(-outputs // ROWS) * ROWS, spans(m, inputs) * GROUPS, n)
    at, kept = torch.zeros(filled, dtype=torch.int64, device=rows.device), rows.new_zeros(filled)
    there = inputs // m
    at[:, :, -1] = n - 1  # each weight is where its turn can come
    at[:outputs, :there] = mask.nonzero()[:, 1].view(outputs, there, n) % m
    kept[:outputs, :there] = rows.detach()[mask].view(outputs, there, n)

    def by_span(each: Tensor) -> Tensor:  # [O, spans, N, 32]
        return each.view(len(each), -1, GROUPS, n).transpose(2, 3)

    halves = by_span(kept.view(torch.int16).int() & 0xFFFF)
    group = torch.arange(GROUPS, device=rows.device)
    bits = [((by_span(at) >> b & 1) << group).sum(3) for b in range((m - 1).bit_length())]
    values = halves[..., : GROUPS // 2] | halves[..., GROUPS // 2 :] << 16
    return values.contiguous(), torch.stack(bits, 3).to(torch.int32)


def unpack(values: Tensor, planes: Tensor, m: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The rows, of ``shape`` ``[O, I]``."""
    group = torch.arange(GROUPS, device=values.device)
    weights = 1 << torch.arange(planes.shape[3], device=values.device)
    at = ((planes[..., None].long() >> group & 1) * weights[:, None]).sum(3)  # [O, spans, N, 32]
    kept = torch.cat((values, values >> 16), 3).to(torch.int16).view(dtype)
    rows = kept.new_zeros(*values.shape[:2], GROUPS, m)
    rows.scatter_add_(3, at.transpose(2, 3), kept.transpose(2, 3))  # groups behind the last input add zeros
    return rows.flatten(1)[: shape[0], : shape[1]]


def ordered(x: Tensor, m: int) -> Tensor:
    """X ``[B, I]`` as kernels take it, ``[B, spans * 32 M]``: filled up with zeros to whole spans."""
    filled = spans(m, x.shape[1]) * GROUPS * m
    if filled > x.shape[1]:
        x = F.pad(x, (0, filled - x.shape[1]))
    return x.reshape(len(x), -1, 2, GROUPS // 2 * m).transpose(2, 3).reshape(len(x), filled)


def matmul(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    activation: str = "none",
) -> Tensor:
    """``x @ rows^T + bias`` of x ``[B, I]`` of the weight's dtype, and what is activated of it."""
    return activated(F.linear(x, unpack(values, planes, m, (outputs, x.shape[1]), x.dtype), bias), activation)
