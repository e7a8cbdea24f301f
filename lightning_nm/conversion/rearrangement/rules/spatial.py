"""Pooling, resizing and padding: the last one to three dimensions of ``[batch, channels, ...]``."""

from __future__ import annotations

import re

import numpy as np

from lightning_nm.conversion.rearrangement.rules.call import Call, rule, rule_like
from lightning_nm.conversion.rearrangement.trace import SINGLE, Axes


@rule_like(r"_?(adaptive_)?(max|avg)_pool\dd.*|_?upsample_.*\dd.*|(reflection|replication)_pad\dd")
def spatial(call: Call) -> list[Axes]:
    axes = call.trace.axes(call.first)
    count = int(re.findall(r"(\d)d", call.name)[0])
    for axis in axes[-count:]:
        call.trace.pin(axis, f"slid over by {call.op}")
    # the indices that maximum pooling returns are places, not channels: they are labelled alike
    kept: Axes = (*axes[:-count], *[f"slid over by {call.op}"] * count)
    return [kept] * len(call.outputs)


@rule("constant_pad_nd")
def constant_pad(call: Call) -> list[Axes]:
    """What is padded with is the same everywhere: channels of its own."""
    axes, sizes = list(call.axes("self")), call["self"].shape
    pad, new = call["pad"], call.trace.channels.new
    for step in range(len(pad) // 2):
        before, after = pad[2 * step : 2 * step + 2]
        d = len(axes) - 1 - step
        axis = axes[d]
        if before == after == 0:
            continue
        if (isinstance(axis, str) and axis != SINGLE) or before < 0 or after < 0:
            call.trace.pin(axis, "padded")
            axes[d] = "padded"
            continue
        inner = new(sizes[d]) if isinstance(axis, str) else axis
        axes[d] = np.concatenate([new(before, constant=True), inner, new(after, constant=True)])
    return [tuple(axes)]
