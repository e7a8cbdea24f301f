"""Which pattern a weight obeys, told by its zeros."""

from __future__ import annotations

from math import floor

import torch
from torch import Tensor

from lightning_nm.kernels.packed_nm import LARGEST_M
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.patterns.base import other_dim

DENSEST = 0.75
"""Above this share of weights kept, no kernel gains anything."""
_BLOCKS = (4, 8, 16, 32)


def recognise(weight: Tensor, *, dim: int = 1) -> NM | Block1xN | str:
    """The pattern by which the fewest weights are stored, or the reason why there is none.

    Of N:M every M up to 32 is tried, of blocks 1x32, 1x16, 1x8 and 1x4; of equal ones blocks go first, then the
    smallest M.

    Args:
        weight: two dimensions or more.
        dim: its reduction dimension.
    """
    density = int(weight.count_nonzero()) / max(1, weight.numel())
    if not density:
        return "it holds nothing but zeros"
    if density > DENSEST:
        return f"{density:.0%} of its weights are not zero"
    held = (weight.detach() != 0).movedim((other_dim(dim, weight.dim()), dim), (0, 1))
    held = held.reshape(*held.shape[:2], -1)  # [O, I, T]
    found = [*_blocks(held), *_groups(held, density)]
    if not found:
        return f"{density:.0%} of its weights are not zero, in no N:M or 1xN pattern of {DENSEST:.0%} or less"
    return min(found, key=lambda pattern: pattern.density)


def _blocks(held: Tensor) -> list[NM | Block1xN]:
    found: list[NM | Block1xN] = []
    stays, before = held.any(2), 1
    for n in _BLOCKS:
        if stays.shape[0] % (n // before):
            break
        stays, before = stays.unflatten(0, (-1, n // before)).any(1), n  # type: ignore[no-untyped-call]
        sparsity = floor(1e4 * (1 - int(stays.count_nonzero()) / stays.numel())) / 1e4  # not more than there is
        if 1 - sparsity > DENSEST:
            break  # larger blocks are more seldom zero
        found.append(Block1xN(n, sparsity))
    return found[::-1]


def _groups(held: Tensor, density: float) -> list[NM | Block1xN]:
    found: list[NM | Block1xN] = []
    counts = {1: held.to(torch.uint8)}
    for m in range(2, LARGEST_M + 1):
        if held.shape[1] % m == 0:
            # the counts of M are sums of those of its largest divisor that is there
            divisor = max(d for d in counts if m % d == 0)
            counts[m] = counts[divisor].unflatten(1, (-1, m // divisor)).sum(2, dtype=torch.uint8)  # type: ignore[no-untyped-call]
            if (n := int(counts[m].max())) <= DENSEST * m:
                found.append(NM(n, m))
            if n <= density * m * 1.001:
                break  # no larger M stores less
    return found
