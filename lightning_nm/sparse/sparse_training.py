"""Train by sparse products: where `SparseTraining` is active, linear layers multiply by packed weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from lightning_nm.sparse import checkpoints
from lightning_nm.sparse.acceleration import Acceleration, Row, told
from lightning_nm.sparse.choice import Choice
from lightning_nm.sparse.decision import AUTO
from lightning_nm.sparse.trained_weight import Key, Trained, TrainedWeight
from lightning_nm.training.selection import Selection
from lightning_nm.training.shards import is_sharded
from lightning_nm.training.sparsifier import Sparsifier


class SparseTraining(TorchFunctionMode):
    """A context for forward passes in training, in which linear layers multiply by their sparse weights, packed.

    >>> import torch
    >>> from lightning_nm.training import Sparsifier, select
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Sparsifier(select(model, "2:4T")) as sparsifier:
    ...     sparse = SparseTraining(sparsifier, backend="cpu")
    ...     with sparse:
    ...         loss = model(torch.ones(8, 64, requires_grad=True)).sum()
    ...     loss.backward()
    ...     _ = optimizer.step()
    >>> [row.backend for row in sparse.rows()]
    ['cpu', 'cpu']

    Results are those of the dense products but for the order of summation. Transposable masks (2:4T) also serve the
    gradient of a layer's input; others the forward product alone. The gradient of the weight is dense, and reaches
    what the mask removed. A weight is packed once after each update, however many batches it meets before the next
    one. While a schedule keeps it dense, torch multiplies.

    The backward pass needs no context. Layers of activation checkpoints run dense, for they are to run again in it as
    they did; both times packed by
    ``torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False, context_fn=sparse.context_fn)``.

    While it is active each call of torch costs the host some time, as under any `TorchFunctionMode`.
    `torch.utils.flop_counter.FlopCounterMode` does not see packed products.

    Attention's own weights (`nn.MultiheadAttention`), recurrent layers and convolutions run dense, and so does what
    `torch.compile` compiles, sharded weights, and what a CUDA graph records. What is written through ``weight.data``
    nobody can see, here as elsewhere.

    Args:
        source: whose weights. A `Sparsifier` knows when they are sparse; of a `Selection`, whose masks are somebody
            else's, the weights are looked at after each update.
        backend: "auto" takes, for each size and both products apart, the sparse one only where to pack and multiply
            takes less time than the dense product does, by a measurement at the first input; or one of
            `lightning_nm.sparse.BACKENDS` that packs fast ("cpu", "cusparselt") wherever it can.

    Raises:
        ValueError: no such backend.
    """

    def __init__(self, source: Sparsifier | Selection, *, backend: str = AUTO) -> None:
        super().__init__()
        Acceleration.check(backend)
        self.source, self.backend = source, backend
        self.met_compiler = False
        self._weights: dict[int, TrainedWeight] = {}
        self._measured: dict[Key, Choice] = {}

    def __enter__(self) -> SparseTraining:
        self._follow(self.source.weights)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def context_fn(self) -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        """For ``torch.utils.checkpoint``: what its layers run in, and run again in if this is active now."""
        if self not in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            return nullcontext(), nullcontext()
        return checkpoints.both_runs_alike(), self._again()

    @contextmanager
    def _again(self) -> Iterator[None]:
        with self, checkpoints.both_runs_alike():
            yield

    def _follow(self, weights: Sequence[Trained]) -> None:
        """Parameters may have been replaced, and weights selected anew."""
        before = self._weights
        self._weights = {}
        for weight in weights:
            known = before.get(id(weight.param))
            if known is None or known.weight is not weight:
                known = TrainedWeight(weight, self.backend, self._measured)
            self._weights[id(weight.param)] = known

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LAYERS:
            if torch.compiler.is_compiling():
                self.met_compiler = True
            elif (layer := _LAYERS[func](*args, **kwargs)) is not None:
                x, weight, bias, dim = layer
                trained = self._weights.get(id(weight))
                if trained is not None and trained.weight.dim == dim and _plain(x, weight, bias, dim):
                    dtype = _common_dtype(x, weight, bias)
                    if checkpoints.may_differ():
                        trained.ran_dense[_CHECKPOINT] = None
                    elif dtype is not None and (out := trained.multiply(x, bias, dtype)) is not None:
                        return out
        return func(*args, **kwargs)

    @property
    def choices(self) -> dict[str, list[Choice]]:
        """By weight: the backend for each size met so far, forward and backward."""
        return {trained.weight.name: list(trained.choices.values()) for trained in self._weights.values()}

    def rows(self) -> list[Row]:
        """For every weight: the backend of each size met, forward and backward, measured times, and why."""
        return [row for trained in self._weights.values() for row in self._rows(trained)]

    def report(self) -> str:
        """`rows` as text."""
        return told(self.rows())

    def _rows(self, trained: TrainedWeight) -> list[Row]:
        weight = trained.weight
        about = weight.name, tuple(weight.param.shape), str(weight.pattern)
        made = [Row(*about, choice.backend, choice.why()) for choice in trained.choices.values()]
        made += [Row(*about, "dense", reason) for reason in trained.ran_dense]
        return made or [Row(*about, "dense", self._why_unmet(weight.param))]

    def _why_unmet(self, param: nn.Parameter) -> str:
        if is_sharded(param):
            return "it is sharded: kernels need all of it"
        if param.dim() > 2:
            return "convolutions are trained by dense products"
        compiled = "what torch.compile compiles is, " if self.met_compiler else ""
        return (
            f"no linear layer has met it while it was sparse ({compiled}attention and recurrent layers are torch's own)"
        )


_CHECKPOINT = "its layer is an activation checkpoint's: give that use_reentrant=False and SparseTraining's context_fn"

Layer = tuple[Tensor, Tensor, Tensor | None, int]
"""(x, weight, bias, the dimension that the weight sums over)"""


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Layer:
    return input, weight, bias, 1


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, out: Any = None) -> Any:
    """GPT-2's Conv1D: its weight is ``[in, out]``."""
    return (mat1, mat2, input, 0) if beta == alpha == 1 and out is None and mat1.dim() == 2 else None


_LAYERS: dict[Any, Callable[..., Layer | None]] = {F.linear: _linear, torch.addmm: _addmm}


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int) -> bool:
    """Whether these are what kernels multiply; torch has its way with others, or says what is wrong."""
    if type(x) not in (Tensor, nn.Parameter) or x.layout != torch.strided or x.is_nested or x.is_neg():
        return False
    if x.dim() == 0 or x.shape[-1] != weight.shape[dim] or x.device != weight.device:
        return False
    if bias is not None and (bias.shape != weight.shape[1 - dim : 2 - dim] or bias.device != x.device):
        return False
    if forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return torch._C._get_tracing_state() is None


def _common_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> torch.dtype | None:
    """In which torch would multiply them; None where it would not, or casts some of them only."""
    dtypes = {x.dtype, weight.dtype, *([] if bias is None else [bias.dtype])}
    if torch.is_autocast_enabled(x.device.type):
        castable = all(dtype.is_floating_point for dtype in dtypes) and torch.float64 not in dtypes
        return torch.get_autocast_dtype(x.device.type) if castable else None
    return x.dtype if len(dtypes) == 1 else None
