"""The model in training, with all that is kept beside it: from start-up through checkpoints to the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_nm.callbacks.averages import Averages
from lightning_nm.callbacks.topology import Topology
from lightning_nm.training import Method, Schedule, Selection, Sparsifier, shards
from lightning_nm.training.checkpoint import require_joined


class TrainedModel:
    """A model's selection, sparsifier, topology and averages, in line with the model as it is now.

    Args:
        select: the weights of a model that become sparse.
        method: how their hidden parts are treated.
        schedule: when they are sparse.
    """

    def __init__(self, select: Callable[[nn.Module], Selection], method: Method, schedule: Schedule) -> None:
        self._select, self._method, self._schedule = select, method, schedule
        self.selection = Selection([], [], [])
        self.sparsifier: Sparsifier | None = None
        self.topology = Topology()
        self.averages = Averages()
        self.said_dense = False
        self._restored: dict[str, Any] | None = None

    @property
    def core(self) -> Sparsifier:
        """The sparsifier, once a model has been met."""
        assert self.sparsifier is not None
        return self.sparsifier

    def meet(self, model: nn.Module) -> None:
        """Begin anew with another model than last time: nothing of the last one's holds for it."""
        shards.reshard(model)  # gathered parameters are other objects: a validation leaves some
        held = set() if self.sparsifier is None else {id(weight.param) for weight in self.sparsifier.weights}
        if held.isdisjoint(id(param) for param in model.parameters()):
            self.sparsifier, self.topology = Sparsifier(None, self._method, self._schedule), Topology()
            self.averages = Averages()
            self.said_dense = False

    def follow(self, model: nn.Module, *, final: bool) -> None:
        """Select, and bring masks and hidden parts in line with the model.

        Lightning builds, restores, moves and wraps a model between `Callback.setup` and the first step, in
        an order that depends on the strategy; so this is done again at each stage (a few passes over the
        weights). ``final``: what is not there now will not come.

        Raises:
            ValueError: if ``final``, nothing is selected, or a restored state belongs to other weights.
        """
        before = {weight.name for weight in self.core.weights}
        self.selection = self._select(model)
        # before the first forward a lazy layer may be all that there is, or that a glob means
        if final and not (self.selection.waiting and self.topology.epoch < 0):
            self.selection.require()
        if self._restored is not None and (final or self.selection.weights):
            self._join(self._restored, final=final)
        elif replaced := self.core.adopt(self.selection):
            rank_zero_info(
                f"NMSparsityCallback: {len(replaced)} weights were loaded after set-up; their values now count as "
                f"the dense weights ({', '.join(replaced[:4])}{', ...' if len(replaced) > 4 else ''})"
            )
            self.topology.forget(replaced)
        if lost := sorted(before - {weight.name for weight in self.core.weights}):
            rank_zero_warn(
                f"NMSparsityCallback: no longer selected, and dense from here on: {', '.join(lost)}. The layers were "
                "replaced, or changed by something else (weight_norm, pruning)"
            )
        self.core.attach()

    def has_more(self, model: nn.Module) -> bool:
        """Whether a lazy layer has got its weight since `follow`."""
        waiting = self.selection.waiting
        return bool(waiting) and sum(is_lazy(param) for param in model.parameters()) < waiting

    def _join(self, restored: dict[str, Any], *, final: bool) -> None:
        """Bring a checkpoint's hidden parts and masks together with its weights."""
        strangers = self.core.adopt(self.selection, restored["weights"])
        if strangers and not final:
            return  # the strategy restores the weights later: once more then
        require_joined(strangers)
        self._restored = None
        self.topology.load_state_dict(restored["topology"], self.core)
        self.averages.load_state_dict(restored.get("averages", []))
        if restored["schedule"] != asdict(self._schedule):
            rank_zero_warn(
                f"NMSparsityCallback: the checkpoint was trained with the schedule {restored['schedule']}, this "
                f"run goes on with {asdict(self._schedule)}"
            )

    def finish(self, model: nn.Module) -> None:
        """Leave optimizers and averages alone. What a tuner or an evaluation has restored is kept for a next fit."""
        if self._restored is not None:
            self.meet(model)
            with suppress(ValueError):  # of another selection
                self.follow(model, final=True)
        self._restored = None
        self.leave()
        if self.sparsifier is not None:
            self.sparsifier.settle()  # an average may have been copied in

    def leave(self) -> None:
        """Leave optimizers and averages alone."""
        self.averages.leave()
        if self.sparsifier is not None:
            self.sparsifier.detach()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and builtins only. All processes of sharded weights must call this."""
        if self._restored is not None:
            return self._restored  # not yet joined with the model: as it came
        if self.sparsifier is None:
            return {}
        return {
            "weights": self.sparsifier.state_dict(),
            "topology": self.topology.state_dict(self.sparsifier),
            "averages": self.averages.state_dict(),
            "schedule": asdict(self._schedule),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Taken up by the next `follow`: the model may not be built or restored yet."""
        self._restored = state or None
