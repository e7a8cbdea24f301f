"""One budget for all layers: those whose weights are small give more."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor

import torch
from torch import nn

from lightning_nm.patterns import LayerBudget, Pattern, parse
from lightning_nm.training import select


def global_budget(model: nn.Module, pattern: str | Pattern, *, ignore: Sequence[str] = ()) -> dict[str, LayerBudget]:
    """The pattern of each layer where the units of all layers compete, by the mean magnitude of their weights.

    To be given to ``select(model, pattern, ignore=ignore, overrides=...)``, or to the callback. Of all weights together
    the pattern's share goes, as far as whole units allow; a layer keeps at least one unit.

    Args:
        model: the trained model.
        pattern: ``"1x16@0.75"``, ``"unstructured@0.9"``, ``"filter@0.5"`` or the like.
        ignore: globs as in ``select``; give them here too, as an override goes before them.

    Returns:
        weight name -> the pattern with the layer's own sparsity. Weights that the pattern does not fit have no entry.

    Raises:
        ValueError: a pattern without a layer's budget, such as N:M; no weight that it fits; NaN or infinity in one.
    """
    shared = parse(pattern)
    if not isinstance(shared, LayerBudget):
        raise ValueError(
            f"{shared} has a budget for every group of weights; only layers' budgets, as 1x16@0.75, are shared"
        )
    weights = select(model, shared, ignore=ignore).require().weights
    means, entries, layers = [], [], []
    for index, (name, param, _, dim) in enumerate(weights):
        if not bool(torch.isfinite(param).all()):
            raise ValueError(f"{name} {list(param.shape)} holds NaN or infinity; it has no {shared} mask")
        norms = shared.unit_norms(param, dim=dim).flatten().cpu()
        size = param.numel() // norms.numel()
        norms[norms.argmax()] = torch.inf  # at least one stays
        means.append(norms / size)
        entries.append(torch.full(norms.shape, size))
        layers.append(torch.full(norms.shape, index))
    order = torch.cat(means).sort(stable=True).indices
    going = torch.cat(entries)[order].cumsum(0) <= floor(
        Fraction(repr(shared.sparsity)) * sum(w.param.numel() for w in weights)
    )
    going &= torch.cat(means)[order].isfinite()
    counts = torch.bincount(torch.cat(layers)[order][going], minlength=len(weights)).tolist()
    # half a unit more than go: rounded down it is that many, whatever the fraction is in binary
    return {
        glob.escape(weight.name): replace(shared, sparsity=(count + 0.5) / len(units) if count else 0.0)  # type: ignore[type-var]
        for weight, count, units in zip(weights, counts, means)
    }
