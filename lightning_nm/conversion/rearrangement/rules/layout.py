"""Operations that move elements without changing them."""

from __future__ import annotations

import numpy as np
import torch

from lightning_nm.conversion.rearrangement.channels import Ids
from lightning_nm.conversion.rearrangement.rules.call import Call, rule
from lightning_nm.conversion.rearrangement.rules.views import reshaped
from lightning_nm.conversion.rearrangement.trace import SINGLE, Axes, Axis

_INDEXED = "indexed by a tensor"


@rule("view", "_unsafe_view", "_reshape_alias", "reshape", "_reshape_copy", "view_copy")
def view(call: Call) -> list[Axes]:
    if call.outputs[0].dtype != call["self"].dtype:
        call.trace.fix(call["self"], "its bits are read as another dtype")
        return []
    return [reshaped(call.trace, call.axes("self"), call["self"].shape, call.outputs[0].shape)]


@rule("permute")
def permute(call: Call) -> list[Axes]:
    axes = call.axes("self")
    return [tuple(axes[d] for d in call["dims"])]


@rule("transpose", "swapaxes")
def transpose(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    if axes:
        i, j = call["dim0"], call["dim1"]
        axes[i], axes[j] = axes[j], axes[i]
    return [tuple(axes)]


@rule("t")
def t(call: Call) -> list[Axes]:
    return [call.axes("self")[::-1]]


@rule("unsqueeze")
def unsqueeze(call: Call) -> list[Axes]:
    axes = call.axes("self")
    d = call["dim"] % (len(axes) + 1)
    return [(*axes[:d], SINGLE, *axes[d:])]


@rule("squeeze")
def squeeze(call: Call) -> list[Axes]:
    shape = call["self"].shape
    dims = call.dims("dim", len(shape))
    return [tuple(axis for d, axis in enumerate(call.axes("self")) if d not in dims or shape[d] != 1)]


@rule("expand")
def expand(call: Call) -> list[Axes]:
    """The positions of a dimension that grows are alike, in whatever order."""
    new, shape = call.trace.channels.new, call.outputs[0].shape
    axes = (SINGLE,) * (len(shape) - call["self"].dim()) + call.axes("self")
    return [
        tuple(
            new(size, constant=True) if isinstance(axis, str) and axis == SINGLE and size > 1 else axis
            for axis, size in zip(axes, shape)
        )
    ]


@rule("repeat")
def repeat(call: Call) -> list[Axes]:
    """Copies of a channel are parts of it."""
    repeats, channels = call["repeats"], call.trace.channels
    axes = list((SINGLE,) * (len(repeats) - call["self"].dim()) + call.axes("self"))
    for d, (axis, times) in enumerate(zip(axes, repeats)):
        if times == 1:
            continue
        if not isinstance(axis, str):
            axes[d] = channels.parts(np.tile(axis, times), np.arange(times).repeat(len(axis)))
        elif axis == SINGLE:
            axes[d] = channels.new(times, constant=True)
    return [tuple(axes)]


@rule("slice")
def slice_(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    d = call["dim"]
    if not isinstance(axis := axes[d], str):
        cut = axis[slice(call["start"], call["end"], call["step"])]
        axes[d] = axis if len(cut) == len(axis) else cut
    return [tuple(axes)]


@rule("select")
def select(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    axis = axes.pop(call["dim"] % len(axes))
    if not isinstance(axis, str):
        call.trace.group(axis[[call["index"]]])
    return [tuple(axes)]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk", "split_copy")
def split(call: Call) -> list[Axes]:
    axes = call.axes("self")
    d = call["dim"] % len(axes)
    sizes = [output.shape[d] for output in call.outputs]
    parts: list[Axis]
    if isinstance(whole := axes[d], str):
        parts = [whole] * len(sizes)
    else:
        parts = list(np.split(whole, np.cumsum(sizes)[:-1]))
    return [(*axes[:d], part, *axes[d + 1 :]) for part in parts]


@rule("unbind")
def unbind(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    axis = axes.pop(call["dim"] % len(axes))
    if not isinstance(axis, str):
        for i in range(len(axis)):
            call.trace.group(axis[[i]])
    return [tuple(axes)] * len(call.outputs)


@rule("cat")
def cat(call: Call) -> list[Axes]:
    # an empty vector is allowed among tensors of any shape
    tensors = [tensor for tensor in call.tensors if tensor.dim() > 1 or tensor.numel()]
    d = call["dim"] % call.outputs[0].dim()
    operands = [call.trace.axes(tensor) for tensor in tensors]
    others = call.trace.broadcast([(*axes[:d], SINGLE, *axes[d + 1 :]) for axes in operands])
    along = [axes[d] for axes in operands]
    if all(isinstance(axis, str) for axis in along):
        fixed = next((axis for axis in along if axis != SINGLE), "concatenated with fixed places")
        return [(*others[:d], fixed, *others[d + 1 :])]
    joined = [_held(call, axis, tensor.shape[d]) for axis, tensor in zip(along, tensors)]
    return [(*others[:d], np.concatenate(joined), *others[d + 1 :])]


def _held(call: Call, axis: Axis, size: int) -> Ids:
    """Channels, if only such as never move."""
    if not isinstance(axis, str):
        return axis
    ids = call.trace.channels.new(size)
    call.trace.pin(ids, axis)
    return ids


@rule("stack")
def stack(call: Call) -> list[Axes]:
    axes = call.trace.broadcast([call.trace.axes(tensor) for tensor in call.tensors])
    d = call["dim"] % (len(axes) + 1)
    return [(*axes[:d], "stacked", *axes[d:])]


@rule("glu")
def glu(call: Call) -> list[Axes]:
    """The first half of a dimension times the sigmoid of the second."""
    axes = list(call.axes("self"))
    d = call["dim"]
    if not isinstance(axis := axes[d], str):
        first, second = np.split(axis, 2)
        axes[d] = call.trace.join(first, second)
    return [tuple(axes)]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    if not isinstance(axis := axes[1], str):
        axes[1] = axis.reshape(call["groups"], -1).T.reshape(-1)
    return [tuple(axes)]


@rule("pixel_shuffle")
def pixel_shuffle(call: Call) -> list[Axes]:
    """``[..., C * r * r, H, W] -> [..., C, H * r, W * r]``: r * r parts of each channel become places."""
    axes, r = call.axes("self"), call["upscale_factor"]
    whole = axes[-3]
    if not isinstance(whole, str):
        channels = call.trace.channels
        outputs = channels.new(len(whole) // r**2)
        call.trace.join(whole, channels.parts(outputs.repeat(r * r), np.tile(np.arange(r * r), len(outputs))))
        whole = outputs
    return [(*axes[:-3], whole, "shuffled from channels", "shuffled from channels")]


@rule("embedding")
def embedding(call: Call) -> list[Axes]:
    looked_up, features = call.axes("weight")
    call.trace.pin(looked_up, "looked up by index")
    return [(*call.axes("indices"), features)]


@rule("index")
def index(call: Call) -> list[Axes]:
    """Indexed by one tensor along one dimension, or by a mask over some: the others are untouched."""
    axes, indices = call.axes("self"), call["indices"]
    used = [d for d, at in enumerate(indices) if at is not None]
    if len(used) != 1:
        call.trace.fix_all(call.tensors, "indexed along several dimensions")
        return []
    (d,) = used
    places = call.trace.axes(indices[d])
    covered = 1
    if indices[d].dtype in (torch.bool, torch.uint8):
        # the places where it is true, in order, in the stead of all that it covers
        call.trace.fix(indices[d], _INDEXED)
        places, covered = (_INDEXED,), indices[d].dim()
    for axis in axes[d : d + covered]:
        call.trace.pin(axis, _INDEXED)
    return [(*axes[:d], *places, *axes[d + covered :])]


@rule("index_select")
def index_select(call: Call) -> list[Axes]:
    axes = list(call.axes("self"))
    if axes:
        d = call["dim"]
        call.trace.pin(axes[d], _INDEXED)
        # an index without dimensions picks one
        axes[d] = next(iter(call.axes("index")), SINGLE)
    return [tuple(axes)]
