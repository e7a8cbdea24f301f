"""The mask kernels in plain torch: what every compiled kernel must equal, bit for bit.

Runs on any device. A *split* takes a dense weight ``w`` apart in place:

    weight <- w where kept, 0 elsewhere
    hidden <- -0.0 where kept, w elsewhere

-0.0 is the one float for which ``x + (-0.0)`` is ``x`` bit for bit, so ``weight + hidden`` is the
dense weight again, signs of zeros included (a masked zero stays the zero it is in both).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nm.kernels.bits import pack_bits, popcount, unpack_bits


def nm_mask(weight: Tensor, n: int, m: int, dim: int) -> Tensor:
    """True at the ``n`` largest magnitudes of every ``m`` consecutive entries along ``dim``.

    Ties go to the lowest index. ``weight.shape[dim]`` must be a multiple of ``m``.
    Every pair of a group is compared once, so nothing here depends on a sort's stability.
    """
    groups: Tensor = weight.detach().abs().unflatten(dim, (-1, m))  # type: ignore[no-untyped-call]
    dim = dim % weight.dim() + 1  # the position inside a group
    keys = groups.unbind(dim)  # m tensors, one per position
    # how many entries of the group go before this one
    rank = [torch.zeros(k.shape, dtype=torch.int16, device=k.device) for k in keys]
    for i in range(m):
        for j in range(i + 1, m):
            first = keys[i] >= keys[j]  # a tie: i, the lower index
            rank[j] += first
            rank[i] += ~first
    return torch.stack([r < n for r in rank], dim).reshape(weight.shape)


def split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``weight`` by ``mask``, in place; ``bits`` becomes the packed mask.

    Returns (entries whose mask changed, entries that are NaN or infinite), int64 scalars on the
    weight's device, so that nothing waits for a GPU.
    """
    packed = pack_bits(mask)
    flips = popcount(packed ^ bits)
    bits.copy_(packed)
    nonfinite = (~torch.isfinite(weight)).sum()
    if hidden is not None:
        hidden.copy_(torch.where(mask, -0.0, weight))
    weight.copy_(torch.where(mask | (weight == 0), weight, 0.0))
    return flips, nonfinite


def nm_split_(weight: Tensor, hidden: Tensor | None, bits: Tensor, n: int, m: int, dim: int) -> tuple[Tensor, Tensor]:
    """`split_` by the N:M mask of the weight itself."""
    return split_(weight, hidden, bits, nm_mask(weight, n, m, dim))


def resplit_(weight: Tensor, hidden: Tensor | None, bits: Tensor) -> Tensor:
    """`split_` by the mask already in ``bits``; returns the number of non-finite entries."""
    return split_(weight, hidden, bits, unpack_bits(bits, weight.shape))[1]


def decay_(grad: Tensor, hidden: Tensor, factor: float, scale: Tensor | None) -> None:
    """``grad += factor * hidden``, in place; times ``scale`` where the gradient still carries it."""
    if scale is None:
        grad.add_(hidden, alpha=factor)
    else:
        grad.add_(hidden * (factor * scale))


def densify_(weight: Tensor, hidden: Tensor, grad: Tensor, factor: float, scale: Tensor | None) -> None:
    """`decay_`, and ``weight += hidden``: the dense weight again, of a `split_`."""
    decay_(grad, hidden, factor, scale)
    weight.add_(hidden)
