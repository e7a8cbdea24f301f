"""Convolutions with filters decoded in registers: the product of `bitplane_nm` over the channels of pixels.

For few pixels, where the filters' bytes are what takes time. Columns of the product are pixels of the result, and each
step of it reads channels of one tap, which lie side by side: so no matrix of patches is made.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.bitplane_nm import GROUPS, ROWS, ordered, spans_at_once
from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.kernels.triton.activation import activated
from lightning_nm.kernels.triton.bitplane_nm import STAGES, WARPS, multiplied, parts
from lightning_nm.kernels.triton.finish import finish


@triton.jit
def kernel(
    x_ptr,  # [images, depth, height, width, groups, per_tap * 32 M], 16 bits, inputs in the kernel's order
    values_ptr,  # [outputs and more, taps * per_tap, N, 16], int32
    planes_ptr,  # [outputs and more, taps * per_tap, N, BITS], int32
    bias_ptr,  # [outputs], or anything without HAS_BIAS
    out_ptr,  # [programs of a tile, pixels, outputs], 16 bits, or float32
    outputs,
    pixels,  # of the result, of all images
    spans,  # of an output
    per_tap,  # spans
    groups,
    depth,
    height,
    width,
    out_d,  # sizes of the result
    out_h,
    out_w,
    stride_d,
    stride_h,
    stride_w,
    dilation_d,
    dilation_h,
    dilation_w,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPANS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    split = tl.program_id(2)
    FILLED: tl.constexpr = 32 * M
    inside = tl.arange(0, SPANS * FILLED)  # [SPANS * FILLED]
    pixel = tl.minimum(column, pixels - 1)  # behind the last nobody asks for the sums
    w, h = pixel % out_w * stride_w, pixel // out_w % out_h * stride_h
    d, image = pixel // out_w // out_h % out_d * stride_d, pixel // out_w // out_h // out_d
    group = tl.program_id(1) * ROWS * groups // outputs
    # where the group's inputs of the first tap lie
    place = (((image * depth + d) * height + h) * width + w) * groups + group  # [COLUMNS]
    place = place.to(tl.int64)
    x_ptrs = x_ptr + place[None, :] * (per_tap * FILLED) + inside[:, None]  # [SPANS * FILLED, COLUMNS]
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(split * SPANS, spans, tl.num_programs(2) * SPANS):
        tap = first // per_tap
        away = tap // (KERNEL_H * KERNEL_W) * dilation_d * height + tap // KERNEL_W % KERNEL_H * dilation_h
        away = (away * width + tap % KERNEL_W * dilation_w) * groups * per_tap + first % per_tap
        x = tl.load(x_ptrs + away * FILLED)
        at = row[:, None] * spans + first + tl.arange(0, SPANS)[None, :]  # [ROWS, SPANS]
        sums = multiplied(sums, values_ptr, planes_ptr, at, x, N, M, BITS, INTERPRETED)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + row, mask=row < outputs, other=0.0)[:, None].to(tl.float32)
    sums = activated(sums, ACTIVATION)
    there = (row < outputs)[:, None] & (column < pixels)[None, :]
    target = (split * pixels + column[None, :]).to(tl.int64) * outputs + row[:, None]
    tl.store(out_ptr + target, sums.to(out_ptr.dtype.element_ty), mask=there)


def convolve(
    x: Tensor,
    values: Tensor,
    planes: Tensor,
    bias: Tensor | None,
    m: int,
    outputs: int,
    convolution: Convolution,
    activation: str = "none",
) -> Tensor:
    """`lightning_nm.kernels.bitplane_conv.convolve`, summed in float32."""
    layout, spatial, (filled, spans, n, _) = memory_format(x), convolution.spatial(x.shape[2:]), values.shape
    view, whole = convolution.spread(x)
    taken = whole.padded(view).movedim(1, -1)  # [B, D, H, W, C]
    sizes, groups = taken.shape[1:4], convolution.groups
    taken = ordered(taken.reshape(-1, taken.shape[4] // groups), m)
    pixels = len(x) * torch.Size(spatial).numel()
    columns = max(16, min(64, triton.next_power_of_2(pixels)))
    tiles, step = triton.cdiv(pixels, columns), spans_at_once(m)
    shared = parts(spans // step, filled // ROWS * tiles)
    out = torch.empty(shared, pixels, outputs, dtype=x.dtype if shared == 1 else torch.float32, device=x.device)
    fused = bias if shared == 1 else None
    kernel[(tiles, filled // ROWS, shared)](
        taken,
        values,
        planes,
        values if fused is None else fused,
        out,
        outputs,
        pixels,
        spans,
        taken.shape[1] // (GROUPS * m),
        groups,
        *sizes,
        *whole.spatial(view.shape[2:]),
        *whole.stride,
        *whole.dilation,
        N=n,
        M=m,
        BITS=planes.shape[3],
        KERNEL_H=whole.kernel[1],
        KERNEL_W=whole.kernel[2],
        ROWS=ROWS,
        COLUMNS=columns,
        SPANS=step,
        HAS_BIAS=fused is not None,
        ACTIVATION=activation if shared == 1 else "none",
        INTERPRETED=not isinstance(kernel, triton.JITFunction),
        num_warps=WARPS,
        num_stages=STAGES,
    )
    done = out[0] if shared == 1 else finish(out, bias, outputs, x.dtype, activation)
    return done.view(len(x), *spatial, outputs).movedim(-1, 1).contiguous(memory_format=layout)
