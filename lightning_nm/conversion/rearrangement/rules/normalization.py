"""Normalisations, and the vectors that scale and shift what they give."""

from __future__ import annotations

import numpy as np

from lightning_nm.conversion.rearrangement.rules.call import Call, rule, rule_like
from lightning_nm.conversion.rearrangement.trace import Axes


@rule_like("(native|cudnn|miopen|_native)_batch_norm(_legit|_legit_no_training)?|_batch_norm_(with_update|no_update)")
def batch_norm(call: Call) -> list[Axes]:
    """Each channel by itself; inference also reads, and training updates, its running statistics."""
    axes = call.axes("input")
    for vector in ("weight", "bias", "running_mean", "running_var"):
        call.join(vector, axes[1])
    return [axes]


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm")
def layer_norm(call: Call) -> list[Axes]:
    """Mean and variance do not depend on the order."""
    axes = call.axes("input")
    for vector in ("weight", "bias"):
        if call.get(vector) is not None:
            call.trace.broadcast([axes, call.axes(vector)])
    return [axes]


@rule("native_group_norm", "group_norm")
def group_norm(call: Call) -> list[Axes]:
    """Channels change places within their group."""
    axes = call.axes("input")
    if not isinstance(axes[1], str):
        groups = call.get("group") or call["num_groups"]
        for part in np.split(axes[1], groups):
            call.trace.group(part)
    for vector in ("weight", "bias"):
        call.join(vector, axes[1])
    return [axes]
