"""Masks from the weights as they are, with nothing trained afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_nm.conversion.report import Conversion, Converted
from lightning_nm.training import Selected, Selection, shards

Score = Tensor | str
"""What a weight's mask is chosen by (shaped like the weight, larger stays), or why its magnitude is used instead."""


def one_shot(selection: Selection, scores: Mapping[str, Score] | None = None) -> Conversion:
    """Mask every selected weight in place, by magnitude or by scores of your own.

    Args:
        selection: of a trained model, dense or sparse without structure, on any device.
        scores: weight name -> score, a tensor shaped like the weight whose largest magnitudes stay (see
            `activation_scores`), or a string that says why there is none. Weights without one go by magnitude.

    Returns:
        What was done: retained magnitude by layer, and what was skipped, with the reason.

    Raises:
        ValueError: nothing is selected, a glob matched nothing, a weight or score holds NaN or infinity, or a score
            has no weight or another shape. No weight has been changed then.
    """
    scores = scores or {}
    return apply_masks(selection, find_masks(selection, scores), scores)


def find_masks(selection: Selection, scores: Mapping[str, Score]) -> dict[str, Tensor]:
    """The mask (bool, shaped like its weight) of every selected weight. Changes nothing; raises as `one_shot`."""
    selection.require()
    if strangers := scores.keys() - {weight.name for weight in selection.weights}:
        raise ValueError(f"there are scores of {sorted(strangers)}, which are not among the selected weights")
    return {weight.name: _mask(weight, scores.get(weight.name, "")) for weight in selection.weights}


def _mask(weight: Selected, score: Score) -> Tensor:
    name, param, pattern, dim = weight
    if shards.is_sharded(param):
        raise ValueError(f"{name} is sharded over several processes; convert the whole model in one")
    values = param.detach()
    try:
        if isinstance(score, str):
            return pattern.mask(values, dim=dim)
        if score.shape != values.shape:
            raise ValueError(f"its score has shape {list(score.shape)}, the weight {list(values.shape)}")
        pattern.check_finite(values)
        return pattern.mask(score.detach().to(values.device), dim=dim)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


@torch.no_grad()
def apply_masks(selection: Selection, masks: Mapping[str, Tensor], scores: Mapping[str, Score]) -> Conversion:
    """Set to zero what the masks do not keep, and say what that left."""
    converted = []
    for name, param, pattern, dim in selection.weights:
        total = param.abs().sum(dtype=torch.float32)
        # not param * mask, which leaves -0.0
        param.copy_(torch.where(masks[name], param, 0.0))
        kept = param.abs().sum(dtype=torch.float32)
        score = scores.get(name, "")
        remark = f"by magnitude: {score}" if isinstance(score, str) and score else ""
        retained = float(kept / total) if total else 1.0
        converted.append(Converted(name, tuple(param.shape), pattern, dim, retained, remark=remark))
    return Conversion(converted, selection.skipped)
