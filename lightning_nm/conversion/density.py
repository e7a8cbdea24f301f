"""How many of every M weights an unstructured sparse layer needs."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from math import comb

from torch import nn

from lightning_nm.patterns import NM
from lightning_nm.training import select


def n_for_density(density: float, m: int, confidence: float = 0.95) -> int:
    """N such that N:M costs a layer of this density little (Hubara et al., NeurIPS 2021).

    Were the zeros spread at random, a group of M would hold a binomial number of them. N = M - k for the largest
    number k of zeros that a group reaches with a probability above ``confidence``. (The paper counts zeros; N here
    counts what is kept.)

    >>> [n_for_density(0.5, 8, confidence) for confidence in (0.6, 0.95)]
    [4, 6]

    Args:
        density: share of the layer's weights that are not zero, from 0 to 1.
        m: weights per group.
        confidence: from 0 to 1, both excluded. Higher keeps more.

    Returns:
        N from 1 to M; M means that the layer has too few zeros for any N:M.

    Raises:
        ValueError: an argument out of its range.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"a density is a share of weights that are not zero, from 0 to 1; got {density}")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1; got {confidence}")
    if m < 1:
        raise ValueError(f"groups hold at least one weight; got M={m}")
    reached = 0.0
    for zeros in range(m, 0, -1):
        reached += comb(m, zeros) * (1 - density) ** zeros * density ** (m - zeros)
        if reached > confidence:
            return max(m - zeros, 1)  # a pattern keeps at least one
    return m


def overrides_for(
    model: nn.Module, m: int, confidence: float = 0.95, *, ignore: Sequence[str] = ()
) -> dict[str, str | None]:
    """The N:M of each layer of an unstructured sparse model, from the layer's own density by `n_for_density`.

    To be given to ``select(model, f"{m}:{m}", ignore=ignore, overrides=...)``.

    Args:
        model: with zeros in its weights.
        m: weights per group, the same for all layers.
        confidence: see `n_for_density`.
        ignore: globs as in ``select``; give them here too, as an override goes before them.

    Returns:
        weight name -> ``"N:M"``, or None (stay dense) where N would be M. Weights that M does not divide have no
        entry.

    Raises:
        ValueError: an argument out of its range.
    """
    chosen: dict[str, str | None] = {}
    for name, param, _, _ in select(model, NM(m, m), ignore=ignore).weights:
        n = n_for_density(int(param.count_nonzero()) / param.numel(), m, confidence)
        chosen[glob.escape(name)] = None if n == m else f"{n}:{m}"
    return chosen
