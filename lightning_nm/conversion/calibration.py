"""Calibration data, and how a model is given them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Call = Callable[[nn.Module, Any], Any]
"""Gives a model one batch; what it returns is not looked at."""


def call_for(model: nn.Module) -> Call:
    """How a batch is given to ``model`` where the user does not say.

    A LightningModule: by its ``validation_step``, or else its ``predict_step``, if it has one of its own (batch
    transfer hooks are not called). Anything else: a mapping as keyword arguments, the first element of a list or
    tuple, a tensor as it is.
    """
    for step in ("validation_step", "predict_step"):
        if _overrides(model, step):
            return partial(_step, step)
    return _forward


def _overrides(model: nn.Module, step: str) -> bool:
    """Whether ``model`` is a LightningModule with a ``step`` of its own (told by name: nothing is imported)."""
    kinds = type(model).__mro__
    base = next((kind for kind in kinds if kind.__name__ == "LightningModule"), None)
    return base is not None and getattr(type(model), step) is not getattr(base, step)


_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def _step(step: str, model: nn.Module, batch: Any) -> Any:
    method = getattr(model, step)
    # batch_idx and dataloader_idx are left out of many signatures
    taken = min(3, sum(parameter.kind in _POSITIONAL for parameter in signature(method).parameters.values()))
    try:
        return method(*(batch, 0, 0)[:taken])
    except RuntimeError as error:
        if "not attached to a `Trainer`" in str(error):
            raise ValueError(
                f"{type(model).__name__}.{step} needs a Trainer, and there is none in a conversion; say how a batch is "
                "given to the model: call=lambda model, batch: model(batch[0]), or --call my.function"
            ) from error
        raise


def _forward(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, (list, tuple)) else batch)


class Calibration:
    """A model with the batches that it is run on, as often as needed and each time the same way.

    Args:
        model: in any mode, on any device.
        batches: what a DataLoader yields: any nesting of lists, tuples, dicts and tensors.
        call: gives the model a batch. None: see `call_for`.
        samples: stop after the batch that completes this many samples (entries of the first dimension of a
            batch's first tensor). None: all batches.
        seed: of whatever is random in the loader or the model.

    Raises:
        ValueError: no batches, or ``samples`` below 1.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], call: Call | None, samples: int | None, seed: int
    ) -> None:
        if samples is not None and samples < 1:
            raise ValueError(f"samples={samples}: calibration needs at least one sample")
        self.model = model
        self.seed = seed
        self._call = call or call_for(model)
        self.device = next((param.device for param in model.parameters()), torch.device("cpu"))
        with self.seeded():
            self.batches = list(_first(batches, samples))
        if not self.batches:
            raise ValueError("there are no calibration batches: the loader is empty (or a generator already used up)")

    def run(self) -> None:
        """Give the model every batch once, without gradients, drawing the same random numbers each time.

        Metrics inside the model do not count these batches; buffers of modules in evaluation mode stay as they are.
        """
        with torch.no_grad(), self.seeded(), _unchanged(self.model), warnings.catch_warnings():
            # of a step without a Trainer, whose numbers nobody asked for here
            warnings.filterwarnings("ignore", message=".*You are trying to `self.log.*")
            for batch in self.batches:
                self._call(self.model, pytree.tree_map(self._moved, batch))

    def _moved(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to(self.device, copy=True)  # a step may write into its batch
        return leaf.to(self.device) if hasattr(leaf, "to") else leaf

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Random numbers from the seed; afterwards the random state is what it was."""
        # all cards: manual_seed seeds them all
        cards = range(torch.cuda.device_count()) if self.device.type == "cuda" else ()
        with torch.random.fork_rng(cards):
            torch.manual_seed(self.seed)
            yield


def _first(batches: Iterable[Any], samples: int | None) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
        seen += len(tensors[0]) if tensors and tensors[0].dim() else 1
        if samples is not None and seen >= samples:
            return


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode in which every module is truly called; afterwards each is in the mode it was in.

    The fast path of ``nn.TransformerEncoderLayer`` and compiled graphs pass by the modules inside, and by
    their hooks.
    """
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        if any(_is_compiled(module) for module in modes):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, training in modes.items():
                module.training = training


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards metrics, and the buffers of modules in evaluation mode, hold what they held before."""
    metrics: list[Any] = [
        module for module in model.modules() if hasattr(module, "_defaults") and hasattr(module, "reset")
    ]
    states = [
        copy.deepcopy({key: metric.__dict__[key] for key in (*metric._defaults, *_COUNTERS)}) for metric in metrics
    ]
    buffers = [b for module in model.modules() if not module.training for b in module.buffers(recurse=False)]
    values = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for metric, state in zip(metrics, states):
            metric.__dict__.update(state)
        for buffer, value in zip(buffers, values):
            buffer.copy_(value)


_COUNTERS = ("_update_count", "_computed")
"""What a torchmetrics metric knows beside its states."""


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
