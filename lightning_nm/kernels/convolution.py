"""What a convolution does beside its weight, and the plain way to do it with a packed one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_BY_DIMENSIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Convolution(NamedTuple):
    """Sizes of a convolution in 1, 2 or 3 spatial dimensions."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def spatial(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Of the result, for inputs of these sizes."""
        return tuple(
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                sizes, self.kernel, self.stride, self.padding, self.dilation
            )
        )

    def fits(self, shape: Sequence[int], outputs: int) -> bool:
        """Whether it is a convolution, and of inputs ``[B, C, *sizes]`` of this shape."""
        dims, (*each, groups) = len(self.kernel), self
        if not 1 <= dims <= 3 or any(len(sizes) != dims for sizes in each) or len(shape) != dims + 2:
            return False
        if min(*self.kernel, *self.stride, *self.dilation, groups) < 1 or min(self.padding) < 0:
            return False
        return shape[1] % groups == 0 and outputs % groups == 0 and min(self.spatial(shape[2:])) > 0

    def spread(self, x: Tensor) -> tuple[Tensor, Convolution]:
        """The same in three dimensions, of which those added have size 1: (a view of x ``[B, C, D, H, W]``, it)."""
        more = 3 - len(self.kernel)
        sizes = [(each,) * more for each in (1, 1, 0, 1)]
        kernel, stride, padding, dilation = (new + old for new, old in zip(sizes, self[:-1]))
        for _ in range(more):
            x = x.unsqueeze(2)
        return x, Convolution(kernel, stride, padding, dilation, self.groups)

    def padded(self, x: Tensor) -> Tensor:
        """X ``[B, C, *sizes]`` between its zeros."""
        around = [size for size in reversed(self.padding) for _ in range(2)]
        return F.pad(x, around) if any(around) else x

    def patches(self, x: Tensor) -> Tensor:
        """``[pixels of the result, T * C]``: what a filter of all C inputs sees of x ``[B, C, *sizes]``, tap by tap."""
        x = self.padded(x)
        for at, (size, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation), 2):
            x = x.unfold(at, dilation * (size - 1) + 1, stride)[..., ::dilation]
        return x.movedim(1, -1).flatten(-1 - len(self.kernel)).flatten(0, -2)

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """By torch, of a dense weight ``[O, I / groups, *kernel]``."""
        convolve = _BY_DIMENSIONS[len(self.kernel)]
        out: Tensor = convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return out


def filters(rows: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """The weight ``[O, I, *kernel]`` of a matrix ``[O, T * I]``, T kernel taps one after the other."""
    taps = rows.view(len(rows), *kernel, -1)
    return taps.movedim(-1, 1)


def memory_format(x: Tensor) -> torch.memory_format:
    """That of the result: the one of x, as torch's own convolutions keep it."""
    if not x.is_contiguous():
        for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
            if x.dim() == dims and x.is_contiguous(memory_format=layout):
                return layout
    return torch.contiguous_format
