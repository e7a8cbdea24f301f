"""The checkpoint of a converted model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_nm.conversion.report import Conversion

# of the dense weights' training, which cannot go on from other weights
_OF_THE_RUN = {
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "callbacks",
    "MixedPrecision",
    "native_amp_scaling_state",
    "amp_scaling_state",
    "averaging_state",
    "current_model_state",
}

RECORD = "sparse_weights"
"""Key of the checkpoint under which `Conversion.record` stands."""


def converted_checkpoint(checkpoint: Mapping[str, Any], model: nn.Module, conversion: Conversion) -> dict[str, Any]:
    """What to save of ``model``, which was loaded from ``checkpoint`` and converted.

    Weights under the same keys and in the same dtypes as they were, hyperparameters and whatever else was saved; not
    the states of optimizers, schedulers, loops, callbacks, averages and loss scaling. ``sparse_weights`` says which
    weights are sparse: name -> ``{"pattern": "N:M", "dim": reduction dimension}``.
    """
    now = model.state_dict()
    weights = {
        # what the model does not have was there for others (strict_loading = False)
        key: now[key].detach().to("cpu", value.dtype) if key in now and isinstance(value, Tensor) else value
        for key, value in checkpoint["state_dict"].items()
    }
    kept = {key: value for key, value in checkpoint.items() if key not in _OF_THE_RUN}
    return {**kept, "state_dict": weights, RECORD: conversion.record()}
