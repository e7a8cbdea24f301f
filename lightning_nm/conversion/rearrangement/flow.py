"""From a model to its spaces, and whether moves leave its function as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_nm.conversion.rearrangement.shadow import Case, Shadow
from lightning_nm.conversion.rearrangement.spaces import Moves, Space, find_spaces
from lightning_nm.conversion.rearrangement.trace import Trace

TOLERANCE = 1e-10
"""Largest difference of an output, over the output's largest magnitude, in float64."""

_EVALUATION = (Case(training=False, random=False), Case(training=False, random=True))
_TRAINING = Case(training=True, random=True)


class Flow:
    """A model's spaces, found by running a float64 copy of it in evaluation and in training mode.

    Args:
        model: on any device, in any mode and dtype; not changed.
        example_input: a tensor, a tuple of positional arguments, or a dict of keyword arguments.

    Raises:
        ValueError: the model cannot be copied or run, or returns what cannot be compared.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._shadow = Shadow(model, example_input)
        trace = Trace(self._shadow.held)
        self._before: dict[Case, list[Tensor]] = {}
        self.notes: list[str] = []
        for case in _EVALUATION:
            self._before[case] = self._shadow.run(case, trace=trace)
        if not any(torch.isfinite(output).any() for output in self._before[_EVALUATION[0]]):
            raise ValueError("the model returns nothing finite for example_input, by which its function could be told")
        try:
            self._before[_TRAINING] = self._shadow.run(_TRAINING, trace=trace)
        except ValueError as error:
            unused = [name for name, tensor in self._shadow.held.items() if tensor.dim() and name not in trace.held]
            if unused:
                raise ValueError(
                    f"{error}; and {unused[0]} (of {len(unused)}) takes no part in evaluation, so that what it is "
                    "connected to cannot be known. Give a larger example_input"
                ) from error
            self.notes.append(f"only evaluation was compared: {error}")
        self.spaces: list[Space] = find_spaces(trace)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The model's own parameters and buffers, by name."""
        return self._shadow.values

    def difference(self, orders: list[tuple[Space, Tensor]]) -> float:
        """How far the outputs move, over their largest magnitude: the worst of all runs."""
        moves = Moves(orders)
        return max(
            _apart(before, after)
            for case, outputs in self._before.items()
            for before, after in zip(outputs, self._shadow.run(case, moves))
        )

    def verify(self, orders: list[tuple[Space, Tensor]]) -> None:
        """Whether the model computes what it did.

        Raises:
            RuntimeError: it does not; names the space to blame.
        """
        difference = self.difference(orders)
        if difference <= TOLERANCE:
            return
        blamed = next((space for space, order in orders if self.difference([(space, order)]) > TOLERANCE), None)
        where = "several spaces together" if blamed is None else f"the {blamed.size} channels of {blamed.where()}"
        raise RuntimeError(
            f"rearranging {where} changed an output by {difference:.1e} of its largest magnitude (allowed: "
            f"{TOLERANCE:.0e}). Nothing has been changed. Leave the layers out: select(model, pattern, ignore=[...])"
        )


def _apart(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape:
        return float("inf")
    same = (before == after) | (before.isnan() & after.isnan())
    # infinities, integers and booleans are the same or not
    if not before.is_floating_point() or not torch.isfinite(before[~same]).all():
        return 0.0 if bool(same.all()) else float("inf")
    if same.all():
        return 0.0
    scale = before[torch.isfinite(before)].abs().max()
    return float((before - after)[~same].abs().max() / scale)
