"""What happens to a weight before its update, in one pass: the gradient term is added and the weight made dense."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4
BLOCK = 32 * WARPS * 8


@triton.jit
def kernel(
    weight_ptr,  # [numel], all alike
    hidden_ptr,
    grad_ptr,
    scale_ptr,  # float32, or anything without SCALED
    factor,
    numel,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = at < numel
    hidden = tl.load(hidden_ptr + at, mask=there, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=there, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + at, mask=there, other=0.0).to(tl.float32)
    if SCALED:
        factor = factor * tl.load(scale_ptr)
    tl.store(grad_ptr + at, (grad + factor * hidden).to(grad_ptr.dtype.element_ty), mask=there)
    tl.store(weight_ptr + at, (weight + hidden).to(weight_ptr.dtype.element_ty), mask=there)  # exact: one of them is 0


def densify_(weight: Tensor, hidden: Tensor, grad: Tensor, factor: float, scale: Tensor | None) -> None:
    """`lightning_nm.kernels.reference.densify_`, of tensors whose memory is alike."""
    numel = weight.numel()
    if not numel:  # nothing to launch
        return
    kernel[(triton.cdiv(numel, BLOCK),)](
        weight,
        hidden,
        grad,
        weight if scale is None else scale,
        factor,
        numel,
        SCALED=scale is not None,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    # torch has not seen it
    torch.autograd.graph.increment_version((weight, grad))
