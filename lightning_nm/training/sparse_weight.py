"""One weight that is sparse wherever the model sees it, with the part that its mask removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns import PackedMask
from lightning_nm.training.methods import Method, Update
from lightning_nm.training.schedule import Schedule
from lightning_nm.training.selection import Selected


class SparseWeight:
    """A selected parameter, its mask and its hidden part.

    At rest the parameter holds the sparse weight. ``open`` returns the hidden part to it for one
    optimizer update, ``close`` takes it out again.

    Memory beside the parameter: one hidden copy (none for methods that keep none) and one bit per
    weight for the mask.
    """

    def __init__(self, selected: Selected, method: Method) -> None:
        self.name, self.param, self.pattern, self.dim = selected
        self.method = method.bind(self.pattern, self.dim)
        self.mask: PackedMask | None = None  # None: the weight is dense, before or after the schedule
        self.hidden: Tensor | None = None
        self.steps = 0
        self.is_open = False
        self.flips: int | Tensor = 0  # mask entries changed since they were last taken
        self._nonfinite: int | Tensor = 0

    def open(self, update: Update) -> None:
        """Before the optimizer's update: add the gradient term, make the weight dense."""
        grad = self.param.grad
        assert grad is not None
        self.is_open = True
        if self.mask is None:
            return
        self.method.regularize(grad, self.hidden, self.mask, update)
        if self.hidden is None:
            return
        weight = self.param.detach()
        if type(self.method).merge is Method.merge:
            weight.add_(self.hidden)  # -0.0 where kept: exact, see kernels.reference
        else:
            weight.copy_(self.method.merge(weight, self.hidden))

    def close(self, schedule: Schedule) -> None:
        """After the optimizer's update: count the step, make the weight sparse if the schedule says so."""
        self.is_open = False
        self.steps += 1
        if schedule.over(self.steps):
            self.mask = self.hidden = None
        elif schedule.sparse(self.steps):
            self.split(moves=schedule.refreshes(self.steps))

    def reclose(self, *, moves: bool) -> None:
        """Make an open weight sparse without counting a step: a closure runs again, or a step broke off."""
        if self.is_open and self.mask is not None:
            self.split(moves=moves)
        self.is_open = False

    def split(self, *, moves: bool = True) -> None:
        """Split the dense parameter in place, by a new mask if it ``moves`` (the first one always does).

        Raises:
            ValueError: the weight holds NaN or infinity. On a GPU `check_finite` finds it later, so
                that no step waits.
        """
        weight = self.param.detach()
        first = self.mask is None
        if self.mask is None:
            self.mask = PackedMask.empty(weight)
        moves = first or (moves and self.method.moves_mask)
        plain = type(self.method).split is Method.split
        if plain and self.hidden is None and self.method.keeps_hidden:
            self.hidden = torch.empty_like(weight)
        target = weight if plain else weight.clone()
        hidden = self.hidden if plain else None
        if moves:
            flips, nonfinite = self.pattern.split_(target, hidden, self.mask.bits, dim=self.dim)
            self.flips = 0 if first else self.flips + flips
        else:
            nonfinite = kernels.resplit_(target, hidden, self.mask.bits)
        self._nonfinite = self._nonfinite + nonfinite
        if isinstance(nonfinite, int):
            self.check_finite()
        if not plain:
            sparse, self.hidden = self.method.split(weight, self.mask.unpack())
            weight.copy_(sparse)

    def check_finite(self) -> None:
        """Raise ValueError if a split has met NaN or infinity since the last check. Waits for a GPU."""
        bad, self._nonfinite = int(self._nonfinite), 0
        if bad:
            raise ValueError(
                f"{self.name} {list(self.param.shape)}: {bad} NaN or infinite entries at optimizer step "
                f"{self.steps}; a {self.pattern} mask of it would mean nothing. Lower the learning rate or clip "
                "the gradients"
            )

    def settle(self, schedule: Schedule) -> bool:
        """Between steps: follow the parameter to its device and dtype, and be sparse if it is time.

        Returns:
            True if the parameter no longer fits the mask, because other weights were loaded into it.
            They are then taken as the dense weight, and the hidden part starts afresh.
        """
        weight = self.param.detach()
        if self.mask is not None:
            if self.mask.shape != weight.shape:
                raise ValueError(
                    f"{self.name}: its mask has shape {list(self.mask.shape)}, the weight {list(weight.shape)}"
                )
            self.mask = self.mask.to(weight.device)
            if self.hidden is not None:
                self.hidden = self.hidden.to(weight)
            if not bool(torch.where(self.mask.unpack(), 0.0, weight).any()):
                return False
        replaced = self.mask is not None
        self.mask = self.hidden = None
        if schedule.sparse(self.steps):
            self.split()
        return replaced

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only, so that ``weights_only`` loading takes it."""
        return {
            "pattern": str(self.pattern),
            "dim": self.dim,
            "method": type(self.method).__name__,
            "method_state": self.method.state_dict(),
            "steps": self.steps,
            "flips": int(self.flips),
            "mask": None if self.mask is None else self.mask.bits,
            "hidden": self.hidden,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a checkpoint's state; `settle` then joins it with the restored weight.

        Raises:
            ValueError: it belongs to another pattern, dimension, method or shape.
        """
        for key, mine in (("pattern", str(self.pattern)), ("dim", self.dim), ("method", type(self.method).__name__)):
            if state[key] != mine:
                raise ValueError(
                    f"{self.name}: the checkpoint was trained with {key} {state[key]}, this run asks for {mine}. "
                    "Resume with the same settings, or load only the weights to start anew from them"
                )
        shape = self.param.shape
        mask, hidden = state["mask"], state["hidden"]
        if hidden is not None and hidden.shape != shape:
            raise ValueError(
                f"{self.name}: the checkpoint's hidden part has shape {list(hidden.shape)}, the weight {list(shape)}: "
                "it belongs to another model"
            )
        try:
            self.mask = None if mask is None else PackedMask(mask.clone(), shape)
        except ValueError as error:
            raise ValueError(f"{self.name}: the checkpoint belongs to another model: {error}") from None
        self.hidden = None if hidden is None else hidden.clone()
        self.steps = state["steps"]
        self.flips = state["flips"]
        self.method.load_state_dict(state["method_state"])
