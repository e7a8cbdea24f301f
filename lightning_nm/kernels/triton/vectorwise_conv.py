"""Convolutions where blocks of outputs share their inputs: the product of `vectorwise_nm` over `lines` of pixels.

A block's inputs, pairs of a tap and a channel, become offsets from where a pixel of the result lies; columns of the
product are pixels. So no matrix of patches is made, and whatever no output of a block asks for costs nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.kernels.triton import vectorwise_nm
from lightning_nm.kernels.triton.activation import activated
from lightning_nm.kernels.triton.finish import finish
from lightning_nm.kernels.triton.lines import RUN, Lines, lines
from lightning_nm.kernels.triton.vectorwise_nm import Tile, product
from lightning_nm.kernels.vectorwise_nm import STEP

_BLOCK = 512


@triton.jit
def kernel(
    lines_ptr,  # [images, taps, channels, D, H, W], 16 bits
    values_ptr,  # [outputs and more, length], 16 bits
    offsets_ptr,  # [blocks, length], int32: of an input from where its pixel lies, in runs of 8
    bias_ptr,  # [outputs], or anything without HAS_BIAS
    out_ptr,  # [programs of a tile, images, pixels, outputs], or [1, images, outputs, pixels]; 16 bits, or float32
    outputs,
    blocks,
    length,
    images,
    depth,  # of the result
    height,
    width,
    runs,  # of a line
    depth_stride,  # of a pixel of the result, in runs
    height_stride,
    image_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    block = tl.program_id(0) % blocks  # neighbours share the pixels of x, which stay in the second cache
    row = block * ROWS + tl.arange(0, ROWS)  # [ROWS]
    column = tl.program_id(0) // blocks * COLUMNS + tl.arange(0, COLUMNS)  # [COLUMNS]
    line = column // (runs * 8)
    w, h, d, image = column % (runs * 8), line % height, line // height % depth, line // height // depth
    within = tl.minimum(image, images - 1).to(tl.int64)  # of columns behind the last nobody asks for the sums
    address = (within * image_stride + d * depth_stride + h * height_stride) * 8 + w
    address = tl.max_contiguous(tl.multiple_of(address, 8), 8)
    offsets_ptr += block * length
    sums = product(lines_ptr + address, 8, values_ptr, offsets_ptr, row, length, ROWS, COLUMNS, STEP, INTERPRETED)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + row, mask=row < outputs, other=0.0)[:, None].to(tl.float32)
    sums = activated(sums, ACTIVATION)
    image = (tl.program_id(2) * images + image).to(tl.int64)
    pixel, pixels = (d * height + h) * width + w, depth * height * width
    if CHANNELS_LAST:
        place = ((image * pixels + pixel) * outputs)[None, :] + row[:, None]
    else:
        place = (image * outputs * pixels + pixel)[None, :] + row[:, None] * pixels
    there = (row < outputs)[:, None] & ((w < width) & (line < images * depth * height))[None, :]
    tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def locate(
    inputs_ptr,  # [blocks, length], int32
    offsets_ptr,  # likewise
    length,
    blocks_of_group,
    inputs,  # of a group
    channels,
    depth,  # of the lines
    height,
    runs,
    dilation_d,
    dilation_h,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How far the inputs of blocks lie from a pixel, in runs of 8."""
    block = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    taken = tl.load(inputs_ptr + block * length + at, mask=at < length, other=0)
    tap, channel = taken // inputs, taken % inputs + block // blocks_of_group * inputs
    plane = tap % KERNEL_W * channels + channel
    line = plane * depth + tap // (KERNEL_H * KERNEL_W) * dilation_d
    line = line * height + tap // KERNEL_W % KERNEL_H * dilation_h
    tl.store(offsets_ptr + block * length + at, line * runs, mask=at < length)


def located(inputs: Tensor, pixels: Lines, groups: int) -> Tensor:
    """``[blocks, length]``, int32."""
    _, _, channels, depth, height, width = pixels.held.shape
    offsets = torch.empty_like(inputs)
    locate[len(inputs), triton.cdiv(inputs.shape[1], _BLOCK)](
        inputs,
        offsets,
        inputs.shape[1],
        -(-len(inputs) // groups),
        channels // groups,
        channels,
        depth,
        height,
        width // RUN,
        *pixels.dilation[:2],
        KERNEL_H=pixels.kernel[1],
        KERNEL_W=pixels.kernel[2],
        BLOCK=_BLOCK,
    )
    return offsets


def convolve(
    x: Tensor,
    values: Tensor,
    inputs: Tensor,
    bias: Tensor | None,
    outputs: int,
    convolution: Convolution,
    activation: str = "none",
) -> Tensor:
    """`lightning_nm.kernels.vectorwise_conv.convolve`, summed in float32."""
    layout, spatial, (filled, length) = memory_format(x), convolution.spatial(x.shape[2:]), values.shape
    pixels = lines(x, convolution)
    rows, count = filled // len(inputs), len(x) * torch.Size(spatial).numel()
    wide, warps, stages = Tile.of(rows, pixels.columns)
    tiles = triton.cdiv(pixels.columns, wide)
    parts = vectorwise_nm.parts(length, len(inputs) * tiles)
    channels_last = parts > 1 or layout != torch.contiguous_format
    shape = (count, outputs) if channels_last else (len(x), outputs, *spatial)
    out = torch.empty(parts, *shape, dtype=x.dtype if parts == 1 else torch.float32, device=x.device)
    fused = bias if parts == 1 else None
    height, runs = pixels.held.shape[4], pixels.held.shape[5] // RUN
    kernel[len(inputs) * tiles, 1, parts](
        pixels.held,
        values,
        located(inputs, pixels, convolution.groups),
        values if fused is None else fused,
        out,
        outputs,
        len(inputs),
        length,
        len(x),
        *pixels.out,
        runs,
        pixels.strides[0] * height * runs,
        pixels.strides[1] * runs,
        pixels.held[0].numel() // RUN,
        ROWS=rows,
        COLUMNS=wide,
        STEP=STEP,
        CHANNELS_LAST=channels_last,
        HAS_BIAS=fused is not None,
        ACTIVATION=activation if parts == 1 else "none",
        INTERPRETED=not isinstance(kernel, triton.JITFunction),
        num_warps=warps,
        num_stages=stages,
    )
    done = out[0] if parts == 1 else finish(out, bias, outputs, x.dtype, activation)
    if channels_last:
        done = done.view(len(x), *spatial, outputs).movedim(-1, 1)
    return done.contiguous(memory_format=layout)
