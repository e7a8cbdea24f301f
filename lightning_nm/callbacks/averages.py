"""Average models that other callbacks keep (EMA, SWA): exactly sparse too.

An average of weights that had different masks is dense. So an average is kept as every sparse weight is: at rest it
holds its own N largest of every M, and what that leaves out returns only while the average is updated. Whatever is
copied from it, swapped in for validation or saved is sparse, in whichever order the callbacks run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_nm.callbacks.kinds import is_kind
from lightning_nm.training import STE, Selected, SparseWeight, Sparsifier
from lightning_nm.training.checkpoint import restore_weight, weight_state
from lightning_nm.training.selection import plain_name


class Averages:
    """Keeps the average models of Lightning's averaging callbacks sparse while they are followed."""

    def __init__(self) -> None:
        self._followed: list[_Average] = []
        self._restored: list[dict[str, Any]] = []

    def follow(self, callbacks: Iterable[Callback], sparsifier: Sparsifier) -> None:
        """Make the averages sparse that these callbacks keep of the model, now and after each of their updates.

        Following twice is following once.
        """
        if self._followed:
            return
        for callback in callbacks:
            # neither has a public way to its model
            model: Any = getattr(callback, "_average_model", None)
            if model is not None and is_kind(callback, "WeightAveraging"):
                self._followed.append(_Average(model.module, model, sparsifier))
            elif model is not None and is_kind(callback, "StochasticWeightAveraging"):
                self._followed.append(_Average(model, callback, sparsifier))
        for average, state in zip(self._followed, self._restored):
            average.load_state_dict(state)
        self._restored = []
        self.settle()

    def settle(self) -> None:
        """Be sparse if the trained weights are."""
        for average in self._followed:
            average.settle()

    def __getstate__(self) -> dict[str, Any]:
        # a copy follows no average
        return {**self.__dict__, "_followed": []}

    def leave(self) -> None:
        """Follow no more. What the averages leave out is kept: callbacks that come later may still save."""
        try:
            self._restored = self.state_dict()
        finally:
            for average in self._followed:
                average.leave()
            self._followed = []

    def state_dict(self) -> list[dict[str, Any]]:
        """What the averages leave out, for each of them; tensors and builtins only."""
        if not self._followed:
            return self._restored  # not yet joined with an average: as it came
        self.settle()
        return [average.state_dict() for average in self._followed]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Taken up by the next `follow`, when the averages have been restored."""
        self._restored = state


class _Average:
    """The sparse weights of one average model, whose ``updater.update_parameters`` moves them."""

    def __init__(self, model: nn.Module, updater: Any, sparsifier: Sparsifier) -> None:
        params = {plain_name(name): param for name, param in model.named_parameters(remove_duplicate=False)}
        self.schedule = sparsifier.schedule
        self.pairs = [
            (trained, SparseWeight(Selected(trained.name, params[trained.name], trained.pattern, trained.dim), STE()))
            for trained in sparsifier.weights
            if trained.name in params
        ]
        self.updater = updater
        self.update: Callable[..., None] = updater.update_parameters
        updater.update_parameters = self._update

    @torch.no_grad()
    def _update(self, *args: Any, **kwargs: Any) -> None:
        self.settle()
        for _, average in self.pairs:
            average.release()
        try:
            self.update(*args, **kwargs)
        finally:
            self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        for trained, average in self.pairs:
            average.steps = trained.steps
            # what is swapped in and out through ``.data`` does not count as touched, and must not
            if average.mask is None or average.touched() or self.schedule.over(average.steps):
                average.settle(self.schedule)

    def leave(self) -> None:
        del self.updater.update_parameters

    def state_dict(self) -> dict[str, Any]:
        return {average.name: weight_state(average) for _, average in self.pairs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for _, average in self.pairs:
            if average.name in state:
                restore_weight(average, state[average.name])
