"""Products that sum over channels."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_nm.conversion.rearrangement.rules.call import Call, rule, rule_like
from lightning_nm.conversion.rearrangement.trace import TAPS, Axes, Axis


def _product(call: Call, left: Axes, right: Axes) -> Axes:
    """``left @ right``: the last dimension of one meets the last but one of the other."""
    trace = call.trace
    trace.join(left[-1], right[-2] if len(right) > 1 else right[-1])
    batch = trace.broadcast([left[:-2], right[:-2]])
    return (*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))


@rule("mm", "bmm", "mv", "dot", "matmul", "vdot")
def matmul(call: Call) -> list[Axes]:
    first, second = (call.trace.axes(tensor) for tensor in call.tensors[:2])
    return [_product(call, first, second)]


@rule("addmm", "baddbmm", "addmv")
def addmm(call: Call) -> list[Axes]:
    added, first, second = (call.trace.axes(tensor) for tensor in call.tensors[:3])
    return [call.trace.broadcast([_product(call, first, second), added])]


@rule("linear")
def linear(call: Call) -> list[Axes]:
    inputs, (outputs, summed) = call.axes("input"), call.axes("weight")
    call.trace.join(inputs[-1], summed)
    call.join("bias", outputs)
    return [(*inputs[:-1], outputs)]


@rule_like("_?scaled_dot_product_([a-z]+_)*attention[a-z_]*")
def attention(call: Call) -> list[Axes]:
    """``softmax(query key^T) value``, dimensions ``[..., length, channels]``."""
    trace = call.trace
    query, key, value = (call.axes(name) for name in ("query", "key", "value"))
    trace.join(query[-1], key[-1])
    trace.join(key[-2], value[-2])
    batch = trace.broadcast([query[:-2], key[:-2], value[:-2]])
    for mask in (call.get("attn_mask"), call.get("attn_bias")):
        if isinstance(mask, Tensor):
            trace.broadcast([(*batch, query[-2], key[-2]), trace.axes(mask)])
    return [(*batch, query[-2], value[-1])]


@rule("convolution", "_convolution")
def convolution(call: Call) -> list[Axes]:
    """Weight ``[outputs, inputs / groups, taps]``; transposed: ``[inputs, outputs / groups, taps]``."""
    trace = call.trace
    inputs, weight = call.axes("input"), call.axes("weight")
    for taps in weight[2:]:
        trace.pin(taps, TAPS)
    for place in inputs[2:]:
        trace.pin(place, "slid over by a convolution")
    outputs = (_transposed if call["transposed"] else _forward)(call, inputs[1], weight[0], weight[1])
    call.join("bias", outputs)
    return [(inputs[0], outputs, *["slid over by a convolution"] * len(inputs[2:]))]


def _forward(call: Call, inputs: Axis, outputs: Axis, summed: Axis) -> Axis:
    """What the outputs of a convolution hold; the dimensions 0 and 1 of its weight hold ``outputs`` and ``summed``."""
    trace, groups = call.trace, call["groups"]
    size, per_group = call["weight"].shape[:2]
    if groups == 1:
        trace.join(inputs, summed)
        return outputs
    if per_group == 1:
        return trace.join(outputs, _own_outputs(call, inputs, size // groups))
    trace.join(inputs, _every_group(call, summed, per_group))
    _within_groups(call, outputs)
    return outputs


def _transposed(call: Call, inputs: Axis, summed: Axis, outputs: Axis) -> Axis:
    """The same of a transposed convolution, whose weight sums over dimension 0."""
    trace, groups = call.trace, call["groups"]
    size, per_group = call["weight"].shape[:2]
    summed = trace.join(summed, inputs)
    if groups == 1:
        return outputs
    if size == groups:
        trace.pin(outputs, "several outputs of one channel")
        return _own_outputs(call, summed, per_group)
    _within_groups(call, summed)
    return _every_group(call, outputs, per_group)


def _own_outputs(call: Call, inputs: Axis, multiplier: int) -> Axis:
    """Depthwise: each input has ``multiplier`` outputs of its own."""
    if multiplier == 1 or isinstance(inputs, str):
        return inputs
    places = np.tile(np.arange(multiplier), len(inputs))
    return call.trace.channels.parts(inputs.repeat(multiplier), places)


def _every_group(call: Call, axis: Axis, size: int) -> Axis:
    """A dimension of the weight that stands for that of every group: the i-th of all groups move as one."""
    groups = call["groups"]
    if isinstance(axis, str):
        return "one for each group of a convolution"
    return call.trace.channels.parts(np.tile(axis, groups), np.arange(groups).repeat(size))


def _within_groups(call: Call, axis: Axis) -> None:
    if not isinstance(axis, str):
        for part in np.split(axis, call["groups"]):
            call.trace.group(part)
