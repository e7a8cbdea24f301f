"""Convolutions of every kind, few enough to be interpreted."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution, filters

CASES = [
    (Convolution((3,), (1,), (1,), (1,), 1), (13,)),
    (Convolution((3,), (2,), (2,), (2,), 1), (22,)),
    (Convolution((1, 1), (1, 1), (0, 0), (1, 1), 1), (3, 8)),
    (Convolution((1, 1), (1, 1), (0, 0), (1, 1), 1), (5, 7)),
    (Convolution((1, 1), (2, 2), (0, 1), (1, 1), 2), (5, 6)),
    (Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1), (5, 7)),
    (Convolution((3, 3), (2, 2), (1, 1), (1, 1), 2), (7, 9)),
    (Convolution((3, 1), (2, 1), (0, 0), (2, 1), 1), (7, 8)),
    (Convolution((1, 3), (2, 1), (0, 2), (1, 2), 1), (4, 5)),
    (Convolution((2, 2, 3), (1, 2, 1), (1, 0, 1), (1, 1, 1), 1), (2, 4, 5)),
]
"""(Convolution, spatial sizes of its input)."""
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def images(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Channels last where there is such a format."""
    x = torch.randn(shape).to(dtype)
    return x.contiguous(memory_format=FORMATS[x.dim()]) if channels_last and x.dim() in FORMATS else x


def exact(x: Tensor, rows: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
    """In float64, of filters ``[O, T * I]``."""
    wide = None if bias is None else bias.double()
    return convolution.dense(x.double(), filters(rows.double(), convolution.kernel), wide)


def taps(convolution: Convolution) -> int:
    return prod(convolution.kernel)
