"""Images as lines of pixels, of which a gathered product reads whole, aligned runs.

A convolution sums, for each pixel of its result, over taps and channels. Along the last dimension a tap shifts pixels
by less than the 16 bytes that a card copies at once; so every tap of that dimension has a copy of the image, shifted
and strided already, while taps of the others only choose other lines:

    lines  [B, taps of the last dimension, C, D, H, W]   16 bits, W the result's filled up to a multiple of 8

Wherever a tap and a channel begin, eight neighbouring pixels are then eight neighbouring numbers. Images that lie so
already, as those that a 1x1 kernel takes often do, are not copied.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution

RUN = 8
"""Pixels that are copied at once: 16 bytes."""
WARPS = 4
_TILE = 4096
"""Numbers that a program copies."""


class Lines(NamedTuple):
    """Where pixels lie."""

    held: Tensor
    """``[B, taps of the last dimension, C, D, H, W]``, contiguous."""
    kernel: tuple[int, ...]
    out: tuple[int, ...]
    """Pixels of the result, in three dimensions."""
    strides: tuple[int, ...]
    """Lines from one pixel of the result to the next, along the first two dimensions."""
    dilation: tuple[int, ...]

    @property
    def columns(self) -> int:
        """Pixels of the result, those that fill lines up too."""
        return len(self.held) * self.out[0] * self.out[1] * self.held.shape[5]


def lines(x: Tensor, convolution: Convolution) -> Lines:
    """Of x ``[B, C, *sizes]``, not empty."""
    if {*convolution.kernel, *convolution.stride} == {1} and not any(convolution.padding):
        x, convolution = x.flatten(2), Convolution((1,), (1,), (0,), (1,), convolution.groups)
    x, convolution = convolution.spread(x)
    (batch, channels, *sizes), (kernel, stride, padding, dilation, _) = x.shape, convolution
    out = convolution.spatial(sizes)
    straight = kernel[2] == stride[2] == 1 and not any(padding) and sizes[2] % RUN == 0
    if straight and x.is_contiguous() and x.data_ptr() % 16 == 0:
        return Lines(x[:, None], kernel, out, stride[:2], dilation)
    # lines that no tap asks for are left out
    by = [1 if size > 1 else step for size, step in zip(kernel[:2], stride)]
    held = [(n if k == 1 else size + 2 * p) for n, k, size, p in zip(out[:2], kernel, sizes, padding)]
    made = x.new_empty(batch, kernel[2], channels, *held, -(-out[2] // RUN) * RUN)
    at_once = max(16, min(64, triton.next_power_of_2(channels)))
    pixels = batch * prod(made.shape[3:])
    copy[triton.cdiv(pixels, _TILE // at_once), triton.cdiv(channels, at_once), kernel[2]](
        x,
        made,
        *x.stride(),
        *x.shape[1:],
        *made.shape[3:5],
        made.shape[5] // RUN,
        pixels // RUN,
        *padding,
        *by,
        stride[2],
        dilation[2],
        CHANNELS=at_once,
        PIXELS=_TILE // at_once,
        num_warps=WARPS,
    )
    return Lines(made, kernel, out, tuple(step // each for step, each in zip(stride, by)), dilation)


@triton.jit
def copy(
    x_ptr,  # [B, channels, depth, height, width], of any strides
    lines_ptr,  # [B, taps, channels, lines_d, lines_h, 8 runs]
    image_stride,
    channel_stride,
    depth_stride,
    height_stride,
    width_stride,
    channels,
    depth,
    height,
    width,
    lines_d,
    lines_h,
    runs,
    all_runs,  # of every image, of one channel and tap
    before_d,  # zeros
    before_h,
    before_w,
    by_d,  # pixels from one to the next
    by_h,
    by_w,
    shift,  # from one tap to the next
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    pixels = all_runs * 8
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)  # [PIXELS]
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)  # [CHANNELS]
    tap = tl.program_id(2)
    line = pixel // (runs * 8)
    plane = line // lines_h
    image = plane // lines_d
    w = pixel % (runs * 8) * by_w + tap * shift - before_w
    h = line % lines_h * by_h - before_h
    d = plane % lines_d * by_d - before_d
    there = (w >= 0) & (w < width) & (h >= 0) & (h < height) & (d >= 0) & (d < depth) & (pixel < pixels)
    source = image.to(tl.int64) * image_stride + d * depth_stride + h * height_stride + w * width_stride  # [PIXELS]
    source = source[None, :] + (channel.to(tl.int64) * channel_stride)[:, None]  # [CHANNELS, PIXELS]
    some = (channel < channels)[:, None]
    seen = tl.load(x_ptr + source, mask=there[None, :] & some, other=0.0)
    size = lines_d * lines_h * (runs * 8)
    first = ((image * tl.num_programs(2) + tap) * channels - image).to(tl.int64)  # `pixel` counts images before it, too
    target = tl.max_contiguous(tl.multiple_of(first * size + pixel, 8), 8)
    target = target[None, :] + (channel.to(tl.int64) * size)[:, None]  # [CHANNELS, PIXELS]
    tl.store(lines_ptr + target, seen, mask=(pixel < pixels)[None, :] & some)
