"""Convolutions of every kind, for the tests of the kernels that do them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@st.composite
def convolutions(draw: st.DrawFn, dims: int | None = None) -> tuple[Convolution, tuple[int, ...]]:
    """(convolution without groups, spatial sizes of its input)."""
    dims = dims or draw(st.integers(1, 3))

    def sizes(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(dims))

    kernel, stride, dilation, padding = sizes(1, 3), sizes(1, 3), sizes(1, 2), sizes(0, 2)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    return Convolution(kernel, stride, padding, dilation, 1), tuple(n + draw(st.integers(0, 6)) for n in least)


def images(batch: int, channels: int, sizes: tuple[int, ...], channels_last: bool = True) -> Tensor:
    """Channels last where there is such a format."""
    x = torch.randn(batch, channels, *sizes)
    return x.to(memory_format=FORMATS[x.dim()]) if channels_last and x.dim() in FORMATS else x
