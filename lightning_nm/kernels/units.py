"""Units, entries of a weight that are kept or removed together: their l1 norms, and the largest of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def unit_norms(weight: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """The l1 norm of every unit, float64: dimension ``d`` is divided by ``sizes[d]``, others stay.

    Added in an order that depends on no device, so that norms, and masks made from them, are the same everywhere.
    """
    norms = weight.detach().double().abs()
    for dim, size in sizes.items():
        if size > 1:
            inside = dim % weight.dim() + 1
            norms = sum_in_order(norms.unflatten(dim, (-1, size)), inside)  # type: ignore[no-untyped-call]
    return norms


def held_units(weight: Tensor, sizes: Mapping[int, int]) -> Tensor:
    """Whether a unit holds anything but zeros."""
    held = weight.detach() != 0
    for dim, size in sizes.items():
        if size > 1:
            held = held.unflatten(dim, (-1, size)).any(dim % weight.dim() + 1)  # type: ignore[no-untyped-call]
    return held


def sum_in_order(terms: Tensor, dim: int) -> Tensor:
    """The sum over ``dim``: the second half onto the first, until one is left."""
    while (size := terms.shape[dim]) > 1:
        half = (size + 1) // 2
        folded = terms.narrow(dim, 0, half).clone()
        folded.narrow(dim, 0, size - half).add_(terms.narrow(dim, half, size - half))
        terms = folded
    return terms.squeeze(dim)


def largest(norms: Tensor, kept: int) -> Tensor:
    """True at the ``kept`` largest of all; ties go to the lowest index."""
    flat = norms.flatten()
    if not kept:
        return torch.zeros_like(norms, dtype=torch.bool)
    least = flat.topk(kept, sorted=False).values.min()  # not kthvalue, which CUDA calls nondeterministic
    above, ties = flat > least, flat == least
    return (above | (ties & (ties.cumsum(0) <= kept - above.sum()))).view(norms.shape)
