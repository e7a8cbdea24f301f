"""Run a model on its sparse weights: who multiplies each, and why not faster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_nm.sparse.backends import BACKENDS
from lightning_nm.sparse.choice import Choice
from lightning_nm.sparse.decision import AUTO, MEASURED
from lightning_nm.sparse.dispatch import Dispatched
from lightning_nm.sparse.held import HeldWeight
from lightning_nm.sparse.recognise import recognise
from lightning_nm.training.layers import LAZY
from lightning_nm.training.selection import Owner, owners_of
from lightning_nm.training.shards import is_sharded


class Row(NamedTuple):
    """What the report says of one weight."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    backend: str
    """That multiplied it, at one of the sizes met."""
    reason: str


class _Weight(NamedTuple):
    """A sparse weight of the model, and what stands for it."""

    name: str
    param: nn.Parameter
    dispatched: Dispatched
    held: HeldWeight
    places: list[tuple[nn.Module, str]]
    """Every module that holds it, and under which key."""


def accelerate(model: nn.Module, *, backend: str = AUTO) -> Acceleration:
    """Have a trained model multiply by its sparse weights with sparse kernels, wherever these are faster.

    >>> import torch
    >>> model = nn.Linear(64, 64).eval()
    >>> with torch.no_grad():
    ...     _ = model.weight.mul_(torch.arange(64) % 4 < 2)
    >>> accelerated = accelerate(model, backend="cpu")
    >>> with torch.inference_mode():
    ...     y = model(torch.randn(1, 64))
    >>> accelerated.choices["weight"][0].backend
    'cpu'
    >>> accelerated.restore()

    Patterns are told from the weights' zeros. The model keeps its parameters' names and its ``state_dict``; it is used
    as before, under ``torch.no_grad()`` or ``torch.inference_mode()``: with gradients its dense weights run. Weights
    that are loaded, trained or cast are packed anew at their next use; what is written through ``weight.data`` nobody
    can see (`Acceleration.pack` and `swap_in` look again). Zeros that are not stored do not spread NaN or infinity,
    and layers of `torch.nn.TransformerEncoder` compute as in training: torch's fused path would give zeros for padding.
    Export and trace the model after ``restore()``. A CUDA graph goes on with the packed weights of its recording:
    record it anew when weights have changed.

    Args:
        model: in place.
        backend: "auto" measures, at the first input of each size, torch's dense product, oneDNN's prepacked one and
            the sparse kernels, and keeps the fastest, unless ``lightning-nm bench --tune`` has found it before;
            "auto_in_graph" does so for a model that will run in a CUDA graph, where it costs nothing to issue a call
            (run it on inputs of each size before the capture); or one of `lightning_nm.sparse.BACKENDS` wherever
            that can.

    Returns:
        A handle: ``report()`` says what runs where and why, ``restore()`` gives the model its own parameters back.

    Raises:
        ValueError: no such backend.
    """
    acceleration = Acceleration(model, backend=backend)
    acceleration.pack()
    acceleration.swap_in()
    return acceleration


class Acceleration:
    """The sparse weights of a model, packed, and the model's own parameters to go back to.

    Args:
        model: nothing happens to it before `swap_in`.
        backend: see `accelerate`.

    Raises:
        ValueError: no such backend.
    """

    def __init__(self, model: nn.Module, *, backend: str = AUTO) -> None:
        self.check(backend)
        self.model, self.backend = model, backend
        self.skipped: list[Row] = []
        """Matrices and kernels that are left to torch."""
        self._weights: list[_Weight] = []

    @staticmethod
    def check(backend: str) -> None:
        """Raise ValueError if there is no such backend."""
        if backend not in (*MEASURED, *BACKENDS):
            raise ValueError(f"no backend {backend!r}; there are {', '.join((*MEASURED, *BACKENDS))}")

    @property
    def sparse(self) -> list[str]:
        """Names of the weights that were found sparse."""
        return [weight.name for weight in self._weights]

    @property
    def choices(self) -> dict[str, list[Choice]]:
        """By weight: the backend for each size met so far."""
        return {weight.name: weight.dispatched.made() for weight in self._weights}

    def pack(self) -> None:
        """Find the weights that are sparse as they are now; a backend packs one when it is first asked to multiply.

        What was packed before is forgotten, what was measured is not. A model that somebody else has accelerated is
        taken over: from now on his handle does nothing.
        """
        _take_back(self.model)
        # a weight that is still there keeps what stands for it: compiled graphs name that
        before = {weight.param: (weight.dispatched, weight.held) for weight in self._weights}
        self._weights, self.skipped = [], []
        for param, owners in owners_of(self.model).items():
            if is_lazy(param):
                self.skipped.append(Row(owners[0].name, (), "-", "dense", LAZY))
                continue
            if param.dim() < 2:
                continue
            dim = _dim(param, owners)
            pattern = dim if isinstance(dim, str) else recognise(param, dim=dim)
            if isinstance(dim, str) or isinstance(pattern, str):
                self.skipped.append(Row(owners[0].name, tuple(param.shape), "-", "dense", str(pattern)))
                continue
            if (known := before.get(param)) is not None and known[0].dim == dim:
                dispatched, held = known
                dispatched.renew(pattern)
            else:
                dispatched = Dispatched(param, pattern, dim, self.backend)
                held = HeldWeight.of(dispatched)
            places = [(owner.module, owner.name.rpartition(".")[2]) for owner in owners]
            self._weights.append(_Weight(owners[0].name, param, dispatched, held, places))

    def swap_in(self) -> None:
        """Have the model hold what stands for its sparse weights."""
        self._swap_in(self._weights)

    def _swap_in(self, weights: Sequence[_Weight]) -> None:
        for weight in weights:
            for module, key in weight.places:
                if module._parameters.get(key) is weight.param:  # else somebody has put another there since
                    # straight into the dictionary: nobody is to see a parameter being registered
                    module._parameters[key] = weight.held  # type: ignore[assignment]

    def restore(self) -> None:
        """Have the model hold its own parameters again, the very same objects; what was put there since stays."""
        for weight in self._weights:
            for module, key in weight.places:
                if module._parameters.get(key) is weight.held:  # type: ignore[comparison-overlap]
                    module._parameters[key] = weight.param

    @contextmanager
    def active(self) -> Iterator[None]:
        """`swap_in` for a while; nothing outside sees it, whatever happens inside.

        Weights that proved too small to gain anything are left where they are.
        """
        try:
            self._swap_in([weight for weight in self._weights if not weight.dispatched.trifling])
            yield
        finally:
            self.restore()

    def rows(self) -> list[Row]:
        """Every matrix and kernel of the model: the backend of each size met, measured times, and why."""
        return [row for weight in self._weights for row in _rows(weight)] + self.skipped

    def report(self) -> str:
        """`rows` as text."""
        return told(self.rows())


def told(rows: Sequence[Row]) -> str:
    """As text, in columns."""
    lines = [("weight", "shape", "pattern", "backend", "why")]
    lines += [(r.name, str(list(r.shape)), r.pattern, r.backend, r.reason) for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def _take_back(model: nn.Module) -> None:
    for module in model.modules():
        for key, param in module._parameters.items():
            if isinstance(param, HeldWeight):
                module._parameters[key] = param.weight


def _dim(param: nn.Parameter, owners: Sequence[Owner]) -> int | str:
    """The dimension that all who hold the parameter sum over, or why no kernel multiplies it."""
    if type(param) is not nn.Parameter:
        return "it is sharded: kernels need all of it" if is_sharded(param) else f"it is a {type(param).__name__}"
    if param.is_meta:
        return "it is on the meta device, where there are no numbers"
    dims = set()
    for owner in owners:
        if isinstance(owner.role, str):
            continue  # an embedding, which looks up the dense weight
        if isinstance(owner.module, (nn.RNNBase, nn.RNNCellBase)):
            return f"{type(owner.module).__name__} multiplies inside torch"
        if owner.role.dim == 0 and param.dim() > 2:
            return "no kernel for transposed convolutions"
        dims.add(owner.role.dim)
    if not dims:
        return str(owners[0].role)
    return dims.pop() if len(dims) == 1 else "it is shared by layers that sum over different dimensions of it"


def _rows(weight: _Weight) -> list[Row]:
    dispatched = weight.dispatched

    def row(backend: str, reason: str) -> Row:
        return Row(weight.name, tuple(weight.param.shape), str(dispatched.pattern), backend, reason)

    rows = [row(choice.backend, choice.why()) for choice in dispatched.made()]
    if dispatched.met_gradients:
        rows.append(row("dense", "gradients were on: use torch.no_grad() or torch.inference_mode()"))
    return rows or [row("-", "no linear layer, convolution or attention has used it yet")]
