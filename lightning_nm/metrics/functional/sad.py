"""Sparse Architecture Divergence: how far two sparse topologies are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_nm.patterns import PackedMask

Mask = Tensor | PackedMask


def _counts(before: Mask, after: Mask) -> Tensor:
    """[differing entries, entries, largest possible difference], int64 ``[3]``."""
    first = before if isinstance(before, PackedMask) else PackedMask.pack(before)
    second = after if isinstance(after, PackedMask) else PackedMask.pack(after)
    numel = first.numel()
    kept = first.kept() + second.kept().to(first.bits.device)
    # two sets of a and b entries out of numel differ in at most min(a + b, 2 numel - a - b);
    # for exact N:M masks that is 2 min(N, M - N) / M of numel
    return torch.stack([first.distance(second), torch.full_like(kept, numel), torch.minimum(kept, 2 * numel - kept)])


def _sad_update(
    before: Mask | Mapping[str, Mask], after: Mask | Mapping[str, Mask], layers: Sequence[str] | None = None
) -> Tensor:
    """Counts per layer, int64 ``[layers, 3]``."""
    if isinstance(before, Mapping) != isinstance(after, Mapping):
        raise ValueError("compare a mask with a mask, or masks by name with masks by name")
    first = before if isinstance(before, Mapping) else {"": before}
    second = after if isinstance(after, Mapping) else {"": after}
    names = list(first) if layers is None else list(layers)
    if set(first) != set(second) or set(first) != set(names):
        raise ValueError(
            f"masks of different layers cannot be compared: {sorted(first)} before, {sorted(second)} after"
            + ("" if layers is None else f", {sorted(names)} expected")
        )
    if not names:
        raise ValueError("there are no masks to compare")
    return torch.stack([_counts(first[name], second[name]).to(_device(first[names[0]])) for name in names])


def _device(mask: Mask) -> torch.device:
    return mask.bits.device if isinstance(mask, PackedMask) else mask.device


def _sad_compute(counts: Tensor, comparisons: Tensor | int, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Counts ``[layers, 3]``, summed over ``comparisons``, to the numbers that are reported."""
    wide = counts.cpu().double()  # exact for counts up to 2^53, and some devices have no float64
    rows = {"": wide.sum(0)}
    rows.update(zip((f"{name}/" for name in layers or ()), wide))
    values = {}
    for prefix, (differing, numel, largest) in rows.items():
        values[f"{prefix}count"] = differing / max(int(comparisons), 1)
        values[f"{prefix}fraction"] = differing / numel.clamp(min=1)
        values[f"{prefix}fraction_of_max"] = differing / largest.clamp(min=1)
    return values


def sparse_architecture_divergence(
    before: Mask | Mapping[str, Mask], after: Mask | Mapping[str, Mask]
) -> dict[str, Tensor]:
    """Number of entries whose mask differs between two moments (Zhou et al., ICLR 2021, eq. 7).

    ``SAD = || E_after - E_before ||_1``, 0 for the same topology.

    Args:
        before: a mask, or one for each layer by name. Masks are bool tensors (True = kept) or
            `PackedMask`.
        after: the same layers at another moment.

    Returns:
        float64 scalars: ``count``, ``fraction`` (of all entries) and ``fraction_of_max`` (of the
        largest SAD that two masks with as many kept entries can have: ``2 min(N, M-N) / M`` of all
        entries for exact N:M masks). For masks by name also ``<layer>/count`` and so on.

    Raises:
        ValueError: not bool, different layers or different shapes.

    >>> before, after = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    >>> sparse_architecture_divergence(before, after)["fraction"]
    tensor(0.5000, dtype=torch.float64)
    """
    layers = list(before) if isinstance(before, Mapping) else None
    return _sad_compute(_sad_update(before, after), 1, layers)
