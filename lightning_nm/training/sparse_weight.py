"""One weight that is sparse wherever the model sees it, with the part that its mask removed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns import PackedMask
from lightning_nm.training import shards
from lightning_nm.training.methods import Method, Update
from lightning_nm.training.schedule import Schedule
from lightning_nm.training.selection import Selected
from lightning_nm.training.tally import Tally


class SparseWeight:
    """A selected parameter, its mask and its hidden part.

    At rest the parameter holds the sparse weight. ``open`` returns the hidden part to it for one
    optimizer update, ``close`` takes it out again.

    Memory beside the parameter: one hidden copy (none for methods that keep none) and one bit per
    weight for the mask. Of a sharded parameter (DTensor) each process handles its own piece.
    """

    def __init__(self, selected: Selected, method: Method) -> None:
        self.name, self.param, self.pattern, self.dim = selected
        self._unbound = method
        self.method = method.bind(self.pattern, self.dim)
        self.mask: PackedMask | None = None  # None: the weight is dense, before or after the schedule
        self.hidden: Tensor | None = None
        self.steps = 0
        self.is_open = False
        self.tally = Tally()
        self._version: tuple[int, ...] = ()  # of the parameter, when it was last split
        self._regularized = False
        self._opened_in_step = False

    @property
    def values(self) -> Tensor:
        """The parameter's values in this process, to be written to."""
        return shards.piece(self.param)

    def kept(self) -> int:
        """Number of entries that are kept. Waits for a GPU; all processes of a sharded weight must call this."""
        if self.mask is None:
            return self.param.numel()
        return int(shards.total(self.mask.kept(), self.param))

    # -- one optimizer step -----------------------------------------------------------------------

    def begin(self) -> None:
        """At the start of an optimizer's step."""
        self._opened_in_step = False

    def regularize(self, update: Update) -> None:
        """Add the gradient term. The update that follows does not add it again."""
        if self.mask is not None and self.param.grad is not None:
            self.method.regularize(self._gradient(), self.hidden, self.mask, update)
        self._regularized = True

    def _gradient(self) -> Tensor:
        """The piece of the gradient that belongs to `values`."""
        grad = self.param.grad
        assert grad is not None
        if not shards.is_sharded(self.param):
            return grad.detach()
        self.param.grad = shards.sharded_alike(grad, self.param)
        grad = shards.piece(self.param.grad)
        if grad.shape != self.values.shape:
            raise ValueError(
                f"{self.name}: the gradient is sharded into pieces of {list(grad.shape)}, the weight into pieces "
                f"of {list(self.values.shape)}; shard both alike"
            )
        return grad

    def lift(self, schedule: Schedule) -> None:
        """Make the weight dense for an optimizer that looks at it before it calls its closure."""
        if self.is_open:
            return
        if self.touched():
            self.settle(schedule)
        self.is_open = True
        if self.mask is not None:
            self._merge()
            self._version = shards.version(self.param)

    def open(self, update: Update) -> None:
        """Before the optimizer's update, at every call of its closure: add the gradient term, make the weight dense."""
        factor = self._fused_factor(update)
        if not factor and not self._regularized:
            self.regularize(update)
        self._regularized = False
        first, self._opened_in_step = not self._opened_in_step, True
        # open from before the merge until after the split: `Sparsifier.restore` makes good what breaks off in between
        self.is_open = True
        if self.hidden is not None and first:
            self.method.shrink(self.hidden, update)
        if factor and self.hidden is not None:
            kernels.densify_(self.values, self.hidden, self._gradient(), factor, update.grad_scale)
        else:
            self._merge()

    def _fused_factor(self, update: Update) -> float:
        """Of the hidden part, where one pass over the weight may add it to the gradient and merge it; else 0."""
        kind = type(self.method)
        plain = kind.regularize is Method.regularize and kind.merge is Method.merge
        to_do = self.hidden is not None and self.param.grad is not None and not self._regularized
        return self.method.gradient_factor(update) if plain and to_do else 0.0

    def close(self, schedule: Schedule) -> None:
        """After the optimizer's update: count the step, make the weight sparse if the schedule says so."""
        self.steps += 1
        if schedule.over(self.steps):
            self.mask = self.hidden = None
        elif schedule.sparse(self.steps):
            self.split(moves=schedule.refreshes(self.steps, self.pattern.refresh))
        self.is_open = False

    def reclose(self, *, moves: bool) -> None:
        """Make an open weight sparse without counting a step: a closure runs again, or a step broke off."""
        if self.is_open and self.mask is not None:
            self.split(moves=moves and self.touched())
        self.is_open = False

    def split(self, *, moves: bool = True) -> None:
        """Split the dense parameter in place, by a new mask if it ``moves`` (the first one always does).

        NaN and infinity are counted here, so that no step waits for a GPU; `check_finite` raises.
        """
        weight = self.values
        first = self.mask is None
        mask = PackedMask.empty(weight) if self.mask is None else self.mask
        moves = first or (moves and self.method.moves_mask)
        plain = type(self.method).split is Method.split
        if plain and self.hidden is None and self.method.keeps_hidden:
            self.hidden = torch.empty_like(weight)
        target = weight if plain else weight.clone()
        hidden = self.hidden if plain else None
        counts = self.tally.on(weight.device)
        if moves:
            found = self.pattern.split_(target, hidden, mask.bits, dim=self.dim, counts=counts)
        else:
            found = 0, kernels.resplit_(target, hidden, mask.bits, counts)
        if counts is None:
            self.tally.add(*found)
        if first:
            self.tally.flips = 0
        if not plain:
            kept = mask.unpack()
            if first:
                self.method.start(weight, kept, lambda sums: shards.total(sums, self.param))
            sparse, self.hidden = self.method.split(weight, kept)
            weight.copy_(sparse)
        self.mask = mask
        self._version = shards.version(self.param)

    def _merge(self) -> None:
        if self.hidden is None:
            return
        weight = self.values
        if type(self.method).merge is Method.merge:
            weight.add_(self.hidden)  # -0.0 where kept: exact, see kernels.reference
        else:
            weight.copy_(self.method.merge(weight, self.hidden))

    def check_finite(self, *, wait: bool = True) -> None:
        """Raise ValueError if a split has met NaN or infinity since the last check.

        Args:
            wait: False: leave what is still on a GPU for later.
        """
        # of a sharded weight all processes must raise, or none: the others would wait for the one that did
        sharded = shards.is_sharded(self.param)
        if not wait and (self.tally.waits or sharded):
            return
        found = self.tally.nonfinite
        met = int(shards.total(torch.as_tensor(found), self.param) if sharded else found)
        if not met:
            return
        self.tally.nonfinite = 0
        # one may have been met at every split since; what the mask has removed for good is only remembered
        bad = int(shards.total((~torch.isfinite(self._dense())).sum(), self.param)) or met
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
        param = self.param
        moved = self.hidden is not None and (self.hidden.dtype, self.hidden.device) != (param.dtype, param.device)
        return moved or shards.version(self.param) != self._version

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
        self._version = shards.version(self.param)
        return replaced

    def _follow(self) -> bool:
        """Whether mask, hidden part and parameter still belong together, on the parameter's device and dtype."""
        if self.mask is None:
            return False
        weight = self.values
        if self.mask.shape != weight.shape:
            raise ValueError(
                f"{self.name}: its mask has shape {list(self.mask.shape)}, the weight {list(weight.shape)}"
            )
        self.mask = self.mask.to(weight.device)
        if self.hidden is None or self.hidden.dtype == weight.dtype:
            self.hidden = None if self.hidden is None else self.hidden.to(weight.device)
            return self.holds()
        # values between the sparse ones are rounded anew by a conversion, zeros are not
        self.hidden = self.hidden.to(weight)
        sparse, hidden = self._as_split()
        if not torch.allclose(sparse, weight, rtol=0.05):
            return False
        weight.copy_(sparse)
        self.hidden = hidden
        return True

    def holds(self) -> bool:
        """Whether the parameter holds the sparse weight that mask and hidden part belong to. Waits for a GPU."""
        return torch.equal(self._as_split()[0], self.values)

    def _as_split(self) -> tuple[Tensor, Tensor | None]:
        """(sparse, hidden) as the mask splits parameter and hidden part, taken together, now."""
        assert self.mask is not None
        return copy.deepcopy(self.method).split(self._dense(), self.mask.unpack())

    def _dense(self) -> Tensor:
        """The dense weight of a sparse one."""
        return self.values if self.hidden is None else self.method.merge(self.values, self.hidden)

    def release(self) -> None:
        """Hand the dense weight back for good."""
        self._merge()
        self.mask = self.hidden = None
