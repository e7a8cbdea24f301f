"""One call of an operation, and the table of rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_nm.conversion.rearrangement.trace import Axes, Axis, Trace


class Call:
    """An operation with its arguments by name, its outputs, and what their dimensions hold."""

    def __init__(
        self, trace: Trace, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: list[Tensor]
    ) -> None:
        self.trace = trace
        self.op = op
        self.outputs = outputs
        arguments = op._schema.arguments
        given = {argument.name: value for argument, value in zip(arguments, args)}
        given.update(kwargs)
        # what is only written to (out=) says nothing of what is written
        self._arguments = {a.name: given.get(a.name, a.default_value) for a in arguments if not a.is_out}
        # relu_ is relu
        self.name = op._schema.name.partition("::")[2].rstrip("_")

    def __getitem__(self, argument: str) -> Any:
        return self._arguments[argument]

    def get(self, argument: str) -> Any:
        return self._arguments.get(argument)

    @property
    def first(self) -> Tensor:
        """The first argument, by whatever name."""
        tensor: Tensor = next(iter(self.tensors))
        return tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(self._arguments) if isinstance(leaf, Tensor)]

    def axes(self, argument: str) -> Axes:
        return self.trace.axes(self._arguments[argument])

    def dims(self, argument: str, dims: int) -> list[int]:
        """An argument that names dimensions, counted from the front; all where it is None or empty."""
        named = self._arguments.get(argument)
        if named is None or named == []:
            return list(range(dims))
        return [d % dims for d in ([named] if isinstance(named, int) else named)] if dims else []

    def join(self, argument: str, axis: Axis) -> None:
        """A vector that may be absent belongs to ``axis``."""
        if isinstance(self._arguments.get(argument), Tensor):
            self.trace.join(self.axes(argument)[0], axis)


Rule = Callable[[Call], list[Axes]]
"""Labels of the outputs; outputs without one are fixed."""

_RULES: dict[str, Rule] = {}
_BY_PATTERN: list[tuple[re.Pattern[str], Rule]] = []

_UNKNOWN = "{} is not known to keep channels apart"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """For the operations of these names: ``aten::`` and the underscore of in-place variants left out."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_like(pattern: str) -> Callable[[Rule], Rule]:
    """For the operations whose whole names match a regular expression."""

    def register(function: Rule) -> Rule:
        _BY_PATTERN.append((re.compile(pattern), function))
        return function

    return register


def observe(trace: Trace, op: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
    """Label what an ATen operation made, and join what it ties together."""
    outputs = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
    call = Call(trace, op, args, kwargs, outputs)
    try:
        labels = _apply(call)
        for tensor, axes in zip(outputs, labels):
            trace.label(tensor, axes)
    except Exception as error:  # a rule that is wrong of an unforeseen call costs its channels, not the whole model
        trace.failures.append(f"{op}: {type(error).__name__}: {error}")
        _unknown(call)
        for tensor in outputs:
            trace.label(tensor, (_UNKNOWN.format(op),) * tensor.dim())
    else:
        trace.fix_all(outputs[len(labels) :], f"a side result of {op}")


def _apply(call: Call) -> list[Axes]:
    """What the outputs of ``call`` hold, or at least the first of them."""
    found = _RULES.get(call.name)
    if found is None and torch.Tag.pointwise in call.op.tags:
        found = _RULES["pointwise"]
    if found is None:
        found = next((function for pattern, function in _BY_PATTERN if pattern.fullmatch(call.name)), _unknown)
    return found(call)


def _unknown(call: Call) -> list[Axes]:
    for tensor in call.tensors:
        call.trace.fix(tensor, _UNKNOWN.format(call.op))
    return []
