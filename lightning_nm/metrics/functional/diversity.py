"""Mask diversity: how many masks a pattern allows, in logarithms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_nm.patterns import Pattern, parse

PatternLike = str | Sequence[int] | Pattern
Weight = Tensor | Sequence[int]


def _diversity_update(
    pattern: PatternLike | Mapping[str, PatternLike],
    weights: Weight | Mapping[str, Weight],
    layers: Sequence[str] | None = None,
    exact: bool = True,
    dim: int = 1,
) -> Tensor:
    """[log of the number of masks, entries] per layer, float64 ``[layers, 2]``."""
    of = weights if isinstance(weights, Mapping) else {"": weights}
    patterns = pattern if isinstance(pattern, Mapping) else dict.fromkeys(of, pattern)
    names = list(of) if layers is None else list(layers)
    if set(patterns) != set(of) or set(of) != set(names):
        raise ValueError(
            f"patterns and weights are of different layers: {sorted(patterns)} and {sorted(of)}"
            + ("" if layers is None else f", {sorted(names)} expected")
        )
    if not names:
        raise ValueError("there are no weights to count the masks of")
    return torch.tensor([_counts(parse(patterns[name]), of[name], exact, dim) for name in names], dtype=torch.float64)


def _counts(pattern: Pattern, weight: Weight, exact: bool, dim: int) -> tuple[float, int]:
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else tuple(weight)
    return pattern.log_diversity(shape, dim=dim, exact=exact), math.prod(shape)


def _diversity_compute(counts: Tensor, layers: Sequence[str] | None) -> dict[str, Tensor]:
    """Logs and entries, float64 ``[layers, 2]``, to the numbers that are reported."""
    rows = {"": counts.sum(0)}
    rows.update(zip((f"{name}/" for name in layers or ()), counts))
    values = {}
    for prefix, (log, numel) in rows.items():
        values[f"{prefix}log"] = log
        values[f"{prefix}log10"] = log / math.log(10)
        values[f"{prefix}bits_per_weight"] = log / math.log(2) / numel.clamp(min=1)
    return values


def mask_diversity(
    pattern: PatternLike | Mapping[str, PatternLike],
    weights: Weight | Mapping[str, Weight],
    *,
    exact: bool = True,
    dim: int = 1,
) -> dict[str, Tensor]:
    """Number of masks that a pattern allows (Hubara et al., arXiv 2102.08124, "mask diversity").

    The more masks, the closer the best of them comes to the best unstructured one. For T entries row-wise N:M allows
    ``C(M, N)^(T/M)`` masks; transposable N:M allows, in each of its ``T/M^2`` tiles, as many as there are M x M binary
    matrices with N ones in every row and column (`lightning_nm.patterns.counting`).

    Args:
        pattern: what `lightning_nm.patterns.parse` reads (``"4:8T"``) or a `Pattern`; or one for each layer by name.
        weights: a weight or its shape; or one for each layer by name.
        exact: False: transposable masks by the paper's formula (144 for 2:4's 90; see
            `lightning_nm.patterns.counting`), for tiles whose masks are too many to be counted, such as 16:32's.
        dim: the weights' reduction dimension (0 for transposed convolutions), which only filters' masks depend on.

    Returns:
        float64 scalars: ``log`` (natural) and ``log10`` of the number of masks, and ``bits_per_weight``: its log2
        over the number of weights, which compares layers of different sizes (1 if every mask were allowed). For
        weights by name also ``<layer>/log`` and so on; the layers together have the product of their numbers.

    Raises:
        ValueError: no pattern, a shape that it does not fit, different layers, or masks too many to be counted.

    >>> {key: round(value.item(), 3) for key, value in mask_diversity("2:4T", (4, 4)).items()}  # 90 masks
    {'log': 4.5, 'log10': 1.954, 'bits_per_weight': 0.406}
    """
    layers = list(weights) if isinstance(weights, Mapping) else None
    return _diversity_compute(_diversity_update(pattern, weights, exact=exact, dim=dim), layers)
