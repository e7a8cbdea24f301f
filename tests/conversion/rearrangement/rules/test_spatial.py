"""Pooling, resizing and padding leave channels where they are."""

from __future__ import annotations

import pytest
from torch.nn import functional as F

from tests.conversion.rearrangement.rules.between import Op, check

FOLLOWED: dict[str, Op] = {
    "maximum": lambda x: F.max_pool2d(x, 2),
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 2),
    "one dimension": lambda x: F.max_pool1d(F.avg_pool1d(x.flatten(2), 2), 2).transpose(1, 2),
    "three dimensions": lambda x: F.max_pool3d(x.unsqueeze(2), (1, 2, 2)).squeeze(2),
    **{
        mode: lambda x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode)
        for mode in ("nearest", "nearest-exact", "bilinear", "bicubic", "area")
    },
    "linear": lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear").transpose(1, 2),
    **{mode: lambda x, mode=mode: F.pad(x, (1, 1, 1, 0), mode=mode) for mode in ("constant", "reflect", "replicate")},
    "padded with other numbers": lambda x: F.pad(x, (1, 0, 0, 1), value=2.0),
    "padded channels": lambda x: F.pad(x, (0, 0, 1, 0, 2, 3)),
    "cut": lambda x: F.pad(x, (-1, 0, 0, -1)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name: str) -> None:
    check(FOLLOWED[name], True)


STAYS: dict[str, Op] = {
    "pooled channels": lambda x: F.max_pool1d(x.flatten(2).transpose(1, 2), 2),
    "cut channels": lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)),
    "unpooled": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "unfolded": lambda x: F.unfold(x, 2).transpose(1, 2),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    check(STAYS[name], False)


def test_padding_that_wraps() -> None:
    """Circular padding is made of slices and copies, and followed through them."""
    check(lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), True)
