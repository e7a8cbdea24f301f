"""N:M masks of groups whose entries lie apart, as those of convolutions do: a thread takes one group."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels import reference
from lightning_nm.kernels.triton.selection import LARGEST_M, decided

WARPS = 4
BLOCK = 32 * WARPS


@triton.jit
def kernel(
    weight_ptr,  # [groups / stride, M, stride]
    mask_ptr,  # uint8, like the weight: 1 where kept
    groups,
    stride,
    N: tl.constexpr,
    M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = group < groups
    first = group // stride * stride * M + group % stride
    INTEGER: tl.constexpr = tl.int16 if weight_ptr.dtype.element_ty.primitive_bitwidth == 16 else tl.int32
    entries = ()
    for i in tl.static_range(M):
        entry = tl.load(weight_ptr + first + i * stride, mask=there, other=0.0)
        entries = entries + (entry.to(INTEGER, bitcast=True),)
    kept = decided(entries, 0, N, M)
    for i in tl.static_range(M):
        tl.store(mask_ptr + first + i * stride, kept[i].to(tl.uint8), mask=there)


def nm_mask(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """`lightning_nm.kernels.reference.nm_mask`."""
    if m > LARGEST_M:
        return reference.nm_mask(weight, n, m, dim)
    rows = weight.detach().contiguous()
    mask = torch.empty(rows.shape, dtype=torch.bool, device=rows.device)
    if groups := rows.numel() // m:
        stride = math.prod(rows.shape[dim % rows.dim() + 1 :])
        grid = (triton.cdiv(groups, BLOCK),)
        kernel[grid](rows, mask.view(torch.uint8), groups, stride, N=n, M=m, BLOCK=BLOCK, num_warps=WARPS)
    return mask
