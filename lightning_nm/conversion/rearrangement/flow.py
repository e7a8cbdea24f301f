"""From a model to its spaces, and whether moves leave its function as it was."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nm.conversion.rearrangement.shadow import Case, Shadow
from lightning_nm.conversion.rearrangement.spaces import Moves, Space, find_spaces
from lightning_nm.conversion.rearrangement.trace import Trace

TOLERANCE = 1e-10
"""Largest difference of an output, over the output's largest magnitude, in float64."""

_NO_TRAINING = "only evaluation was compared"


class Flow:
    """A model's spaces, found by running float64 copies of it in evaluation and in training mode.

    Args:
        model: on any device, in any mode and dtype; not changed.
        example_input: a tensor, a tuple of positional arguments, a dict of keyword arguments; or a list of such inputs.

    Raises:
        ValueError: the model cannot be copied or run, or returns what cannot be compared.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._shadow = Shadow(model, example_input)
        trace = Trace({})
        self._before: dict[Case, list[Tensor]] = {}
        self._used: set[str] = set()
        self.notes: list[str] = []
        for example in self._shadow.examples:
            for random in (False, True):
                self._run(Case(False, random, example), trace)
            try:
                self._run(Case(True, True, example), trace)
            except ValueError as error:
                self.notes.append(f"{_NO_TRAINING}: {error}")
        self._unused = {
            name: tuple(tensor.shape)
            for name, tensor in self.tensors.items()
            if tensor.dim() and tensor.numel() and name not in self._used
        }
        if self._unused:
            self.notes.append(f"not used in any run, and not changed: {_listed(self._unused)}")
        self.notes += [
            f"its channels stay, for its rule failed: {failure}" for failure in dict.fromkeys(trace.failures)
        ]
        self.spaces: list[Space] = find_spaces(trace)

    def _run(self, case: Case, trace: Trace) -> None:
        outputs = self._before[case] = self._shadow.run(case, trace=trace)
        # what a run met before it failed does not count: where that leads was not seen
        self._used |= trace.used(self._shadow.held)
        if any(torch.isfinite(output).any() for output in outputs):
            return
        if not case.random:
            raise ValueError("the model returns nothing finite for example_input, by which its function could be told")
        self.notes.append(f"nothing was compared in one of the runs ({case}): the model returns nothing finite")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The model's own parameters and buffers, by name."""
        return self._shadow.values

    def difference(self, orders: list[tuple[Space, Tensor]]) -> float:
        """How far the outputs move, over their largest magnitude: the worst of all runs."""
        moves = Moves(orders)
        worst = 0.0
        for case, before in self._before.items():
            after = self._shadow.run(case, moves)
            if len(before) != len(after):
                return float("inf")
            worst = max(worst, *map(_apart, before, after))
        return worst

    def verify(self, orders: list[tuple[Space, Tensor]]) -> None:
        """Whether the model computes what it did.

        Raises:
            RuntimeError: it does not; names the space to blame.
            ValueError: that cannot be known, because inputs other than the examples would use more of the model, or
                because it computes something else each time.
        """
        unknown = [name for name, shape in self._unused.items() if _might_hold(shape, [space for space, _ in orders])]
        if unknown:
            raise ValueError(
                f"{_listed(unknown)}: used in no run, so that the channels that it reads or makes cannot be known, and "
                "some of those that would move may be among them. Give an example_input that uses it, or a list of "
                "several that together use all; remove what no input uses from the model"
                + "".join(f" ({note})" for note in self.notes if note.startswith(_NO_TRAINING))
            )
        difference = self.difference(orders)
        if difference <= TOLERANCE:
            return
        if (apart := self.difference([])) > TOLERANCE:
            raise ValueError(
                f"the model is not deterministic: as it is, two runs with the same seeds on the same input differ by "
                f"{apart:.1e} of an output's largest magnitude, so that its function cannot be told"
            )
        blamed = next((space for space, order in orders if self.difference([(space, order)]) > TOLERANCE), None)
        where = "several spaces together" if blamed is None else f"the {blamed.size} channels of {blamed.where()}"
        raise RuntimeError(
            f"rearranging {where} changed an output by {difference:.1e} of its largest magnitude (allowed: "
            f"{TOLERANCE:.0e}). Nothing has been changed. Leave the layers out: select(model, pattern, ignore=[...])"
        )


def _might_hold(shape: tuple[int, ...], spaces: list[Space]) -> bool:
    """Whether a tensor of that shape has a dimension for the channels of a space.

    Alone, flattened with others (a multiple), or among others as they are elsewhere in the model.
    """
    return any(
        size % space.size == 0 or any(size == site.size for site in space.sites) for size in shape for space in spaces
    )


def _listed(names: Collection[str]) -> str:
    first = ", ".join([*names][:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def _apart(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape:
        return float("inf")
    same = (before == after) | (before.isnan() & after.isnan())
    # infinities, integers and booleans are the same or not
    if not (before.is_floating_point() or before.is_complex()) or not torch.isfinite(before[~same]).all():
        return 0.0 if bool(same.all()) else float("inf")
    if same.all():
        return 0.0
    scale = before[torch.isfinite(before)].abs().max()
    return float((before - after)[~same].abs().max() / scale)
