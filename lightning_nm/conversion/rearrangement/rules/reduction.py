"""Reductions and what goes along a dimension."""

from __future__ import annotations

from lightning_nm.conversion.rearrangement.rules.call import Call, rule
from lightning_nm.conversion.rearrangement.trace import SINGLE, Axes


def _reduced(call: Call, axes: Axes, dims: list[int]) -> Axes:
    if call.get("keepdim"):
        return tuple(SINGLE if d in dims else axis for d, axis in enumerate(axes))
    return tuple(axis for d, axis in enumerate(axes) if d not in dims)


@rule("sum", "mean", "amax", "amin", "var", "std", "var_mean", "std_mean", "prod", "any", "all", "logsumexp")
def order_free(call: Call) -> list[Axes]:
    """The result does not depend on the order of what it sums over."""
    axes = call.trace.axes(call.first)
    return [_reduced(call, axes, call.dims("dim", len(axes)))] * len(call.outputs)


@rule("linalg_vector_norm", "norm")
def vector_norm(call: Call) -> list[Axes]:
    return order_free(call)


@rule("max", "min", "argmax", "argmin", "median", "mode")
def positional(call: Call) -> list[Axes]:
    """Which position is the largest depends on the order, unless all that is asked for is the value."""
    axes = call.trace.axes(call.first)
    if call.name in ("max", "min") and len(call.outputs) == 1:
        if len(call.tensors) == 2:
            return [call.trace.broadcast([call.trace.axes(tensor) for tensor in call.tensors])]
        return [()]
    dims = call.dims("dim", len(axes))
    for d in dims:
        call.trace.pin(axes[d], f"{call.op} asks for positions")
    return [_reduced(call, axes, dims)] * len(call.outputs)


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "topk", "flip", "roll")
def along(call: Call) -> list[Axes]:
    """Depends on the order along some dimensions; the others take no part."""
    axes = call.trace.axes(call.first)
    dims = call.dims("dims" if call.name in ("flip", "roll") else "dim", len(axes))
    for d in dims:
        call.trace.pin(axes[d], f"{call.op} goes along it")
    kept: Axes = tuple(f"{call.op} goes along it" if d in dims else axis for d, axis in enumerate(axes))
    return [kept] * len(call.outputs)
