"""Sparse outside the optimizer's update, dense inside it: the training core. Knows no Lightning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_nm.patterns import PackedMask
from lightning_nm.training import shards
from lightning_nm.training.checkpoint import require_joined, require_same, restore_weight, weight_state
from lightning_nm.training.methods import SRSTE, Method, Update
from lightning_nm.training.schedule import Schedule
from lightning_nm.training.selection import Selection
from lightning_nm.training.sparse_weight import SparseWeight
from lightning_nm.training.untraced import untraced


class Sparsifier:
    """Keeps the selected weights sparse while any optimizer trains them.

    >>> import torch
    >>> from lightning_nm.training import Sparsifier, select
    >>> model = torch.nn.Linear(8, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Sparsifier(select(model, "2:4")):
    ...     model(torch.ones(1, 8)).sum().backward()
    ...     _ = optimizer.step()
    >>> int((model.weight != 0).sum())
    8

    Nothing is followed before ``with`` or `attach`. No change to the model, the loss or the loop is
    needed: PyTorch's optimizer hooks call it around each ``optimizer.step()``, of whichever optimizer
    holds a selected weight, now or later. A step with a closure (LBFGS, Lightning) runs every call of
    the closure at sparse weights.

    Args:
        selection: from `select`. None: there is no model yet; `adopt` will follow.
        method: how the hidden part is treated; each weight gets its own copy.
        schedule: when weights are sparse, counted in optimizer steps.

    Values loaded into the model between steps are noticed at the next step; they then count as dense
    weights. (Writing through ``param.data`` is not noticed: call `adopt` after it.)

    Raises:
        ValueError: nothing is selected, a glob matched nothing, or the method cannot train a pattern.
    """

    def __init__(
        self, selection: Selection | None, method: Method | None = None, schedule: Schedule | None = None
    ) -> None:
        self.method = method or SRSTE()
        self.schedule = schedule or Schedule()
        self.weights: list[SparseWeight] = []
        self._handles: list[RemovableHandle] = []
        if selection is not None:
            self.adopt(selection.require())

    def __getstate__(self) -> dict[str, Any]:
        # a copy follows no optimizer until it is attached itself
        return {**self.__dict__, "_handles": []}

    # -- which weights ----------------------------------------------------------------------------

    @torch.no_grad()
    def adopt(self, selection: Selection, restored: dict[str, Any] | None = None) -> list[str]:
        """Take (or take again) the selected weights and make them sparse.

        Called again, it follows parameters that were replaced, moved, converted or loaded with other
        weights in the meantime, picks up those that were not there yet, and hands back dense those
        that are no longer selected. All processes of sharded weights must call this.

        Args:
            restored: a `state_dict` to continue from.

        Returns:
            Names of weights that had been given other values since they were split; these values now
            count as dense ones.

        Raises:
            ValueError: ``restored`` belongs to another model, selection, pattern or method.
        """
        known = {w.name: w for w in self.weights}
        if restored is not None:
            require_same(restored, [s.name for s in selection.weights])
        weights = []  # the old ones count until the new ones are complete: Ctrl-C loses none
        replaced = []
        for selected in selection.weights:
            weight = known.pop(selected.name, None)
            if weight is None or (weight.pattern, weight.dim) != (selected.pattern, selected.dim):
                if weight is not None and weight.param is selected.param:
                    weight.release()
                weight = SparseWeight(selected, self.method)
            weight.param = selected.param
            if restored is not None:
                restore_weight(weight, restored[selected.name])
            if shards.anywhere(weight.settle(self.schedule), weight.param):
                replaced.append(weight.name)
            weights.append(weight)
        self.weights = weights
        for weight in known.values():
            weight.release()
        self._check_finite(self.weights)
        return replaced

    # -- around the optimizer's step --------------------------------------------------------------

    def attach(self) -> None:
        """Start to follow optimizer steps. Calling it twice is the same as once."""
        if not self._handles:
            self._handles = [
                register_optimizer_step_pre_hook(untraced(self._before_step)),
                register_optimizer_step_post_hook(untraced(self._after_step)),
            ]

    def detach(self) -> None:
        """Stop following optimizer steps; weights stay sparse, hidden parts stay here."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.restore()

    def __enter__(self) -> Sparsifier:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def restore(self) -> None:
        """Make every weight sparse that an exception inside a step left dense."""
        for weight in self.weights:
            # Ctrl-C may have come after the weight was made sparse again, or before it was made dense
            if weight.is_open and weight.mask is not None and weight.holds():
                weight.is_open = False
        self._reclose(self.weights)

    @torch.no_grad()
    def settle(self) -> None:
        """Take the values of weights that others have written to, by whatever way, as the dense ones."""
        for weight in self.weights:
            if weight.mask is not None and not weight.holds():
                weight.settle(self.schedule)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        owned = self._owned(optimizer)
        if not owned:
            return None
        for weight, _ in owned:
            weight.begin()
        # args[0] is the optimizer
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._open(optimizer)
            return None
        # PyTorch's own optimizers touch no weight before they call the closure; others (SAM) may save and move
        # weights first, and must find the dense ones
        if not type(optimizer).step.__module__.startswith("torch.optim."):
            with torch.no_grad():
                for weight, _ in owned:
                    weight.lift(self.schedule)

        reclose, reopen = untraced(self._reclose), untraced(self._open)

        def at_sparse_weights() -> Any:
            reclose([w for w, _ in self._owned(optimizer)])
            loss = closure()
            reopen(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": at_sparse_weights}
        return (args[0], at_sparse_weights, *args[2:]), kwargs

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        weights = [weight for weight, _ in self._owned(optimizer)]
        for weight in weights:
            if weight.is_open:
                weight.close(self.schedule)
            elif weight.touched():
                weight.absorb(moves=self.schedule.refreshes(weight.steps, weight.pattern.refresh))
        self._check_finite(weights)

    def _owned(self, optimizer: Optimizer) -> list[tuple[SparseWeight, dict[str, Any]]]:
        """The selected weights that ``optimizer`` updates, with their parameter groups."""
        found = {id(w.param): w for w in self.weights}.get
        return [(w, g) for g in optimizer.param_groups for p in g["params"] if (w := found(id(p))) is not None]

    def regularize(self, optimizer: Optimizer) -> None:
        """Add the method's gradient term to the gradients now rather than in the coming ``optimizer.step()``.

        Call it just before clipping, after unscaling, to have the term clipped together with the data
        gradient, as the published code does. Without it the term is added to what clipping left, so
        that lambda is exact.
        """
        untraced(self._regularize)(optimizer)

    @torch.no_grad()
    def _regularize(self, optimizer: Optimizer) -> None:
        for weight, update in self._updates(optimizer):
            weight.regularize(update)

    @torch.no_grad()
    def _open(self, optimizer: Optimizer) -> None:
        # an optimizer that unscales by itself is told the scale, and whether to skip, by the scaler
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        for weight, update in self._updates(optimizer):
            weight.open(update)

    def _updates(self, optimizer: Optimizer) -> Iterator[tuple[SparseWeight, Update]]:
        """The weights that ``optimizer`` is about to update, each as it should be at rest."""
        scale = getattr(optimizer, "grad_scale", None)
        for weight, group in self._owned(optimizer):
            # no gradient: the optimizer leaves it alone, and so do we
            if weight.param.grad is None or weight.is_open:
                continue
            if weight.touched():
                weight.settle(self.schedule)
            yield weight, Update(group.get("lr", 0.0), self.schedule.strength(weight.steps), scale)

    @torch.no_grad()
    def _reclose(self, weights: Sequence[SparseWeight]) -> None:
        for weight in weights:
            weight.reclose(moves=self.schedule.refreshes(weight.steps + 1, weight.pattern.refresh))
        self._check_finite(weights)

    @staticmethod
    def _check_finite(weights: Sequence[SparseWeight]) -> None:
        # after all of them have been made sparse: one that diverged must not leave the others dense
        for weight in weights:
            weight.check_finite(wait=False)

    # -- what became of it ------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimizer steps of the weight that has had most."""
        return max((w.steps for w in self.weights), default=0)

    def masks(self) -> dict[str, PackedMask]:
        """The masks as they are now (not copies), by parameter name; dense weights have none.

        Of a sharded parameter it is the mask of this process's piece.
        """
        return {w.name: w.mask for w in self.weights if w.mask is not None}

    def take_flips(self) -> dict[str, int]:
        """Mask entries that changed since this was last called, by name. Waits for a GPU.

        Where parameters are sharded, all processes must call this.
        """
        flips = {}
        for weight in self.weights:
            weight.check_finite()
            flips[weight.name] = int(shards.total(torch.as_tensor(weight.tally.flips), weight.param))
            weight.tally.flips = 0
        return flips

    def state_dict(self) -> dict[str, Any]:
        """Hidden parts, masks and counters by parameter name: live tensors and builtins only.

        Of sharded weights they are gathered, on the CPU; all processes must call this, whichever saves.
        """
        self.restore()
        with torch.no_grad():
            for weight in self.weights:
                if weight.touched():
                    weight.settle(self.schedule)
        return {w.name: weight_state(w) for w in self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`, with the model's own (sparse) weights already loaded.

        All processes of sharded weights must call this.

        Raises:
            ValueError: it belongs to another model, selection, pattern or method, or to other weights
                than the model holds.
        """
        require_same(state, [w.name for w in self.weights])
        strangers = []
        with torch.no_grad():
            for weight in self.weights:
                restore_weight(weight, state[weight.name])
                if shards.anywhere(weight.settle(self.schedule), weight.param):
                    strangers.append(weight.name)
        require_joined(strangers)
