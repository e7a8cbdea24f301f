"""One weight that is sparse wherever the model sees it, with the part that its mask removed."""

from __future__ import annotations

import copy
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
        self._unbound = method
        self.method = method.bind(self.pattern, self.dim)
        self.mask: PackedMask | None = None  # None: the weight is dense, before or after the schedule
        self.hidden: Tensor | None = None
        self.steps = 0
        self.is_open = False
        self.flips: int | Tensor = 0  # mask entries changed since they were last taken
        self._nonfinite: int | Tensor = 0
        self._version = -1  # of the parameter, when it was last split
        self._opened_in_step = False

    # -- one optimizer step -----------------------------------------------------------------------

    def begin(self) -> None:
        """At the start of an optimizer's step."""
        self._opened_in_step = False

    def open(self, update: Update) -> None:
        """Before the optimizer's update, at every call of its closure: add the gradient term, make the weight dense."""
        if self.mask is not None:
            assert self.param.grad is not None
            update = update._replace(again=self._opened_in_step)
            self.method.regularize(self.param.grad, self.hidden, self.mask, update)
            self._merge()
        # last: whatever failed above has left the weight sparse
        self.is_open = self._opened_in_step = True

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

        NaN and infinity are counted here, so that no step waits for a GPU; `check_finite` raises.
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
        if not plain:
            sparse, self.hidden = self.method.split(weight, self.mask.unpack())
            weight.copy_(sparse)
        self._version = self.param._version

    def _merge(self) -> None:
        if self.hidden is None:
            return
        weight = self.param.detach()
        if type(self.method).merge is Method.merge:
            weight.add_(self.hidden)  # -0.0 where kept: exact, see kernels.reference
        else:
            weight.copy_(self.method.merge(weight, self.hidden))

    def check_finite(self, *, wait: bool = True) -> None:
        """Raise ValueError if a split has met NaN or infinity since the last check.

        Args:
            wait: False: leave what is still on a GPU for later.
        """
        if isinstance(self._nonfinite, Tensor) and not wait:
            return
        bad, self._nonfinite = int(self._nonfinite), 0
        if bad:
            raise ValueError(
                f"{self.name} {list(self.param.shape)}: {bad} NaN or infinite entries at optimizer step "
                f"{self.steps}; a {self.pattern} mask of it would mean nothing. Lower the learning rate or clip "
                "the gradients"
            )

    # -- between steps ----------------------------------------------------------------------------

    def touched(self) -> bool:
        """Whether somebody has written to the parameter at rest (as autograd's version counter saw it) or moved it."""
        if self.mask is None:
            return False
        moved = self.hidden is not None and (self.hidden.dtype, self.hidden.device) != (
            self.param.dtype,
            self.param.device,
        )
        return moved or self.param._version != self._version

    def absorb(self, *, moves: bool) -> None:
        """Split again after an update that went on when the weight was sparse already.

        So it is with an optimizer that calls an inner one's ``step`` and then moves the weights itself.
        """
        self._merge()
        self.split(moves=moves)

    def settle(self, schedule: Schedule) -> bool:
        """Follow the parameter to its device and dtype, and be sparse if it is time.

        Returns:
            True if the parameter no longer holds the sparse weight, because other values were loaded
            into it. They are then taken as the dense weight, and the hidden part starts afresh.
        """
        fits = self._follow()
        replaced = self.mask is not None and not fits
        if fits and not schedule.sparse(self.steps):
            # resumed with another schedule
            self.release()
        if not fits:
            self.mask = self.hidden = None
            if replaced:
                self.method = self._unbound.bind(self.pattern, self.dim)
            if schedule.sparse(self.steps):
                self.split()
        self._version = self.param._version
        return replaced

    def _follow(self) -> bool:
        """Whether mask, hidden part and parameter still belong together, on the parameter's device and dtype."""
        if self.mask is None:
            return False
        weight = self.param.detach()
        if self.mask.shape != weight.shape:
            raise ValueError(
                f"{self.name}: its mask has shape {list(self.mask.shape)}, the weight {list(weight.shape)}"
            )
        self.mask = self.mask.to(weight.device)
        if self.hidden is None:
            dense, converted = weight, False
        else:
            converted = self.hidden.dtype != weight.dtype
            self.hidden = self.hidden.to(weight)
            dense = self.method.merge(weight, self.hidden)
        # values between the sparse ones are rounded anew by a conversion, zeros are not
        sparse, hidden = copy.deepcopy(self.method).split(dense, self.mask.unpack())
        if not (torch.allclose(sparse, weight, rtol=0.05) if converted else torch.equal(sparse, weight)):
            return False
        if converted:
            weight.copy_(sparse)
            self.hidden = hidden
        return True

    def release(self) -> None:
        """Hand the dense weight back for good."""
        self._merge()
        self.mask = self.hidden = None

    # -- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Live tensors (no copies) and builtins only, so that ``weights_only`` loading takes it."""
        return {
            "shape": list(self.param.shape),
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
        if not isinstance(state, dict) or state.keys() != self.state_dict().keys():
            raise ValueError(f"{self.name}: the checkpoint's state is not one of a sparse weight")
        if state["shape"] != list(self.param.shape):
            raise ValueError(
                f"{self.name}: the checkpoint's weight has shape {state['shape']}, this one {list(self.param.shape)}: "
                "it belongs to another model"
            )
        for key, mine in (("pattern", str(self.pattern)), ("dim", self.dim), ("method", type(self.method).__name__)):
            if state[key] != mine:
                raise ValueError(
                    f"{self.name}: the checkpoint was trained with {key} {state[key]}, this run asks for {mine}. "
                    "Resume with the same settings, or load only the weights to start anew from them"
                )
        mask, hidden = state["mask"], state["hidden"]
        expected = list(self.param.shape) if mask is not None and self.method.keeps_hidden else None
        found = None if hidden is None else list(hidden.shape)
        if found != expected:
            raise ValueError(f"{self.name}: the checkpoint's hidden part has shape {found}, expected {expected}")
        try:
            self.mask = None if mask is None else PackedMask(mask.clone(), self.param.shape)
        except ValueError as error:
            raise ValueError(f"{self.name}: the checkpoint is damaged: {error}") from None
        self.hidden = None if hidden is None else hidden.clone()
        self.steps = state["steps"]
        self.flips = state["flips"]
        self.method.load_state_dict(state["method_state"])
