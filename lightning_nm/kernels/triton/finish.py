"""The last step of products whose inputs several programs share: their parts are added up, in one launch.

At small batches a launch takes as long as a tenth of the product.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.triton.activation import activated

_BLOCK = 512


@triton.jit
def kernel(
    parts_ptr,  # [parts, batch, filled], float32
    bias_ptr,  # [outputs], or anything without HAS_BIAS
    out_ptr,  # [batch, outputs]
    parts,
    batch,
    filled,
    outputs,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # there may be more of them than programs of any other dimension
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    there = output < outputs
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(parts):
        total += tl.load(parts_ptr + (part * batch + row) * filled + output, mask=there, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + output, mask=there, other=0.0).to(tl.float32)
    total = activated(total, ACTIVATION)
    tl.store(out_ptr + row * outputs + output, total.to(out_ptr.dtype.element_ty), mask=there)


def finish(parts: Tensor, bias: Tensor | None, outputs: int, dtype: torch.dtype, activation: str = "none") -> Tensor:
    """``[batch, outputs]``: the sum of ``parts`` ``[parts, batch, outputs or more]`` of float32 and of the bias.

    It is activated, and rounded last.
    """
    count, batch, filled = parts.shape
    out = torch.empty(batch, outputs, dtype=dtype, device=parts.device)
    kernel[(batch, triton.cdiv(outputs, _BLOCK))](
        parts,
        parts if bias is None else bias,
        out,
        count,
        batch,
        filled,
        outputs,
        BLOCK=_BLOCK,
        HAS_BIAS=bias is not None,
        ACTIVATION=activation,
    )
    return out
