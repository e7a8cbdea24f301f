"""A float64 copy of a model, on which the flow of channels is traced and every rearrangement is tried."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_nm.conversion.rearrangement.commit import is_expanded
from lightning_nm.conversion.rearrangement.rules import observe
from lightning_nm.conversion.rearrangement.spaces import Moves
from lightning_nm.conversion.rearrangement.trace import INPUT, OUTPUT, Trace

_WIDER = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    torch.complex64: torch.complex128,
}

_OUT_OF_REACH = 1e30
"""No weight or statistic is as large, but what masks add is."""


class Case(NamedTuple):
    """A way to run the model."""

    training: bool
    random: bool
    """Random inputs, and parameters and buffers with noise, so that zeros, ones and symmetries of a fresh or frozen
    model hide nothing."""
    example: int = 0
    """Which of the example inputs."""

    def __str__(self) -> str:
        which = f", input {self.example + 1}" if self.example else ""
        return (
            f"{'training' if self.training else 'evaluation'}, {'random values' if self.random else 'as it is'}{which}"
        )


class Shadow:
    """Runs copies of ``model`` in double precision; the model is never touched.

    Raises:
        ValueError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._model = model
        self.values = _tensors(model)
        devices = {tensor.device for tensor in self.values.values()}
        # mps has no float64
        self._device = torch.device("cpu") if any(device.type == "mps" for device in devices) else None
        self._seeded = [device for device in devices if device.type == "cuda"]
        self.held = _tensors(self._copy())
        """The parameters and buffers of the copy that ran last, by name."""
        examples = example_input if isinstance(example_input, list) else [example_input]
        if not examples:
            raise ValueError("example_input is a list of inputs, and empty; give at least one")
        self._inputs = [_arguments(example) for example in examples]

    @property
    def examples(self) -> range:
        """A number for each of the example inputs."""
        return range(len(self._inputs))

    def run(self, case: Case, moves: Moves | None = None, trace: Trace | None = None) -> list[Tensor]:
        """The outputs of the model with its tensors permuted by ``moves``; labels everything in ``trace``.

        Raises:
            ValueError: the model does not run, or returns what cannot be compared.
        """
        with _untouched(self._model), _seeds(self._seeded), torch.no_grad():
            # a copy of its own for each run: counters, caches and states would tell runs apart
            model = self._copy()
            self.held = _tensors(model)
            args, kwargs = tree_map_only(Tensor, lambda t: self._input(t, case), self._inputs[case.example])
            for name, tensor in self.held.items():
                if is_expanded(tensor):
                    continue  # a constant that cannot be written to
                value = self.values[name].detach().to(tensor.device, tensor.dtype)
                if case.random and tensor.is_floating_point():
                    value = _noisy(value, positive=not isinstance(tensor, nn.Parameter))
                tensor.copy_(value if moves is None else moves.apply(name, value))
            model.train(case.training)
            if trace is not None:
                trace.hold(self.held)
                trace.fix_all(_leaves((args, kwargs)), INPUT)
            try:
                with _plain_operations(), _Double(trace):
                    output = model(*args, **kwargs)
            except Exception as error:
                raise ValueError(f"the model does not run on example_input in float64 ({case}): {error}") from error
        try:
            tensors = _leaves(output)
        except TypeError as error:
            raise ValueError(f"what the model returns cannot be compared: {error}") from None
        if not tensors:
            raise ValueError(f"the model returns no tensor but {type(output).__name__}")
        if trace is not None:
            trace.fix_all(tensors, OUTPUT)
        return [tensor.clone() for tensor in tensors]

    def _copy(self) -> nn.Module:
        try:
            made = copy.deepcopy(self._model)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"the model cannot be copied ({error}); remove weight_norm hooks and the like first"
            ) from error
        own = {tensor.data_ptr(): name for name, tensor in self.values.items() if tensor.numel()}
        shared = [own[tensor.data_ptr()] for tensor in _tensors(made).values() if tensor.data_ptr() in own]
        if shared:
            raise ValueError(f"the model cannot be copied: {shared[0]} is shared with the copy (by a __deepcopy__?)")
        return made.to(device=self._device).double()  # which leaves complex numbers complex

    def _input(self, tensor: Tensor, case: Case) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.to(self._device, copy=True)
        values = tensor.detach().to(self._device, torch.float64, copy=True)
        return torch.randn_like(values) if case.random else values


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example input as what the model is called with."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _noisy(value: Tensor, positive: bool) -> Tensor:
    """Other numbers of the same scale, no two channels alike; no smaller than zero where they may be variances.

    What masks put out of reach (infinity, or the least number of a dtype) stays.
    """
    draw = torch.rand if positive else torch.randn
    sides = [[-1 if d == other else 1 for other in range(value.dim())] for d in range(value.dim())]
    vectors = [draw(size, dtype=value.dtype, device=value.device).view(side) for size, side in zip(value.shape, sides)]
    usual = value.abs() < _OUT_OF_REACH
    numbers = value[usual]
    scale = numbers.square().mean().sqrt() if numbers.any() else value.new_ones(())
    noise = reduce(torch.mul, vectors, 0.1 * scale)
    return torch.where(usual, noise + value * (0.5 + torch.rand_like(vectors[0])) if vectors else value + noise, value)


def _leaves(tree: Any) -> list[Tensor]:
    """The tensors in nested containers and in the attributes of plain result objects.

    Raises:
        TypeError: something is in there that tensors could hide in.
    """
    found: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            found += _leaves(dict(vars(leaf)))
        elif leaf is not None and not isinstance(
            leaf, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
        ):
            raise TypeError(f"it holds a {type(leaf).__name__}, whose tensors cannot be seen")
    return found


@contextmanager
def _seeds(devices: list[torch.device]) -> Iterator[None]:
    """The same random numbers in each run, and afterwards those that would have come without it."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Hooks and closures are not copied with a model: what they write to its buffers is undone."""
    held = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffers, before in held:
            buffers.clear()
            buffers.update(before)
        with torch.no_grad():
            for buffer, value in values:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def _plain_operations() -> Iterator[None]:
    """Every layer as the operations that it consists of: no fused encoder layers, no compiled graphs."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Double(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Casts down become casts to float64, and what is dropped at random is kept, so that runs can be compared."""

    def __init__(self, trace: Trace | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._trace = trace

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in _WIDER:
            kwargs["dtype"] = _WIDER[kwargs["dtype"]]
        raised_args, raised = tree_map_only(Tensor, lambda t: t.to(_WIDER.get(t.dtype, t.dtype)), (args, kwargs))
        name = op._schema.name
        if name == "aten::bernoulli_":
            out = args[0].fill_(args[1] if len(args) > 1 else 0.5)
        elif name == "aten::native_dropout":
            out = (raised_args[0].clone(), torch.ones_like(raised_args[0], dtype=torch.bool))
        else:
            out = op(*(args if op._schema.is_mutable else raised_args), **raised)
        if self._trace is not None:
            observe(self._trace, op, args, kwargs, out)
        return out
