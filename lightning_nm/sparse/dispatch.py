"""Which backend multiplies: the fastest at the sizes at hand, by measurement. Dense ones win ties."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse.backends import BACKENDS, DenseOperand, Operand, backends_for
from lightning_nm.sparse.recognise import recognise
from lightning_nm.sparse.timing import Stopwatch, stopwatch, wall_clock

AUTO = "auto"
TIE = 0.95
"""A backend must take less than this share of the time of what is simpler: dense, then prepacked, then sparse."""
TRIFLE = 1e-4
"""Seconds: to ask takes some 5 us."""
DENSE = ("dense", "onednn")
"""Backends that multiply a dense weight."""
_SECONDS, _FEWEST, _MOST = 0.01, 2, 20

Key = tuple[object, ...]


@dataclass(frozen=True)
class Choice:
    """The backend for products of one size, and why."""

    backend: str
    times: dict[str, float]
    """Seconds of each backend that was measured."""
    reason: str
    size: str = ""
    """Of what was multiplied."""

    def why(self) -> str:
        """Size, reason and times in words."""
        times = ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in self.times.items())
        return f"{self.size}: {self.reason}" + (f" (us: {times})" if times else "")


_measured: dict[Key, Choice] = {}
_at: WeakValueDictionary[Key, Dispatched] = WeakValueDictionary()


def dispatched(weight: Tensor) -> Dispatched | None:
    """What multiplies by this very weight, by where it lies in memory; None: nothing does."""
    place = _place(weight)
    there = _at.get(place)
    # memory that a weight has left may be another's by now
    return there.current() if there is not None and _place(there.weight) == place else None


def _place(weight: Tensor) -> Key:
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


def _state(weight: Tensor) -> Key:
    """Changes when somebody writes to the weight or moves it, but not when they write through ``weight.data``."""
    return (*_place(weight), None if weight.is_inference() else weight._version)


def forget() -> None:
    """Measure everything anew from now on."""
    _measured.clear()


class Dispatched:
    """A sparse weight with all the forms in which backends hold it, and the backend for each size met.

    Args:
        weight: dense storage of the sparse weight; read only.
        pattern: which it obeys, or why it obeys none: then torch multiplies.
        dim: its reduction dimension.
        backend: a name in `BACKENDS`, where that can multiply, or "auto".
    """

    def __init__(self, weight: Tensor, pattern: NM | Block1xN | str, dim: int, backend: str = AUTO) -> None:
        self.weight, self.dim, self.backend = weight, dim, backend
        self.renew(pattern)

    def renew(self, pattern: NM | Block1xN | str) -> None:
        """The weight holds other values now: forget how it was packed, and what was chosen.

        Args:
            pattern: which it obeys now, or why it obeys none.
        """
        self.pattern = pattern
        self._state = _state(self.weight)
        _at[_place(self.weight)] = self
        self.choices: dict[Key, Choice] = {}
        self.met_gradients = False
        """Whether gradients were asked for where it was used: then torch multiplied the dense weight."""
        self._operands: dict[str, Operand] = {}
        self._parts: dict[object, Dispatched] = {}

    def current(self) -> Dispatched:
        """Itself, renewed if somebody has written to the weight: loaded others, trained it, moved or cast it."""
        if _state(self.weight) != self._state:
            self.renew(recognise(self.weight, dim=self.dim))
        return self

    def product(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Tensor:
        """Linear, or the convolution."""
        key = self._key(x, bias, convolution)
        choice = self.choices.get(key)
        if choice is None:
            size = f"x {list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
            choice = self.choices[key] = replace(self._choose(x, bias, convolution, key), size=size)
        return apply(self.operand(choice.backend), x, bias, convolution)

    def operand(self, backend: str) -> Operand:
        """The weight in a backend's form."""
        if backend not in self._operands:
            self._operands[backend] = (
                DenseOperand(self.weight, self.dim)
                if isinstance(self.pattern, str)
                else BACKENDS[backend].hold(self.weight, self.pattern, self.dim)
            )
        return self._operands[backend]

    def cast(self, dtype: torch.dtype) -> Dispatched:
        """The weight in another dtype, as autocast wants it."""
        if dtype not in self._parts:
            self._parts[dtype] = Dispatched(self.weight.detach().to(dtype), self.pattern, self.dim, self.backend)
        return self._parts[dtype]

    def rows(self, first: int, last: int) -> Dispatched:
        """Some of the outputs of a linear weight, as attention takes them."""
        if (first, last) not in self._parts:
            piece = self.weight.detach()[first:last]
            self._parts[first, last] = Dispatched(piece, recognise(piece, dim=self.dim), self.dim, self.backend)
        return self._parts[first, last]

    @property
    def trifling(self) -> bool:
        """Whether torch multiplied each time, in so little time that to ask costs more than it could bring."""
        made = self.made()
        return bool(made) and all(c.backend == "dense" and c.times.get("dense", 1.0) < TRIFLE for c in made)

    def made(self) -> list[Choice]:
        """Every choice so far, those for its parts too."""
        return [*self.choices.values(), *(choice for part in self._parts.values() for choice in part.made())]

    def _key(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Key:
        rows = x.numel() // max(1, self.weight.shape[self.dim])
        layout = None if convolution is None else memory_format(x)
        # sizes up to the next power of two share a choice
        bucket = (rows - 1).bit_length() if rows else None
        return (convolution, bucket, x.dtype, layout, bias is None, torch.get_num_threads())

    def _choose(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None, key: Key) -> Choice:
        if isinstance(self.pattern, str):
            return Choice("dense", {}, self.pattern)
        if not x.numel():
            return Choice("dense", {}, "there is nothing to multiply")
        there = backends_for(self.weight.device)
        refusals = {name: b.why_not(self.weight, self.pattern, x, self.dim) for name, b in there.items()}
        able = [name for name, refusal in refusals.items() if refusal is None]
        if self.backend != AUTO:
            refusal = refusals.get(self.backend, f"{self.backend} is not for {self.weight.device.type} tensors")
            return Choice("dense", {}, refusal) if refusal else Choice(self.backend, {}, "asked for")
        if able == ["dense"]:
            sparse = {name: refusal for name, refusal in refusals.items() if name not in DENSE and refusal}
            if len(set(sparse.values())) == 1:
                return Choice("dense", {}, next(iter(sparse.values())))
            told = "; ".join(f"{name}: {refusal}" for name, refusal in sparse.items())
            return Choice("dense", {}, told or f"no kernels for {self.weight.device.type} tensors")
        # layers alike share a measurement
        alike = (self.weight.shape, self.weight.dtype, self.weight.device, str(self.pattern), self.dim, key)
        if alike not in _measured:
            _measured[alike] = self._measure(able, x, bias, convolution)
        return _measured[alike]

    def _measure(self, able: list[str], x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Choice:
        x = x.nan_to_num(0.0, 0.0, 0.0)  # zeros that are not stored would not spread what is not finite

        def run(name: str) -> Callable[[], Tensor]:
            operand = self.operand(name)
            return lambda: apply(operand, x, bias, convolution)

        runs = {"dense": run("dense")}
        expected, wrong = runs["dense"](), []
        for name in able[1:]:
            try:
                call = run(name)
                if _agree(call(), expected):  # compiles, too
                    runs[name] = call
                else:
                    wrong.append(f"{name} disagrees with dense")
            except Exception as error:  # whatever is wrong with it, there is dense
                wrong.append(f"{name} failed with {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        times = _fastest(runs, _clock(self.weight.device))
        best, fastest = "dense", min(times, key=lambda name: times[name])
        for name in sorted(times, key=lambda name: (name not in DENSE, times[name])):
            if times[name] < TIE * times[best]:
                best = name
        reason = "the fastest" if best == fastest else f"{fastest} gains less than {1 - TIE:.0%}"
        if wrong:
            reason = f"{reason}; {', '.join(wrong)}"
        return Choice(best, times, reason)


def apply(operand: Operand, x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Tensor:
    """Linear, or the convolution."""
    return operand.linear(x, bias) if convolution is None else operand.convolution(x, bias, convolution)


def _agree(a: Tensor, b: Tensor) -> bool:
    """As far as the order of summation allows."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    finite = b.isfinite()  # in half precision sums may be beyond its largest number
    difference = torch.where(finite, a.float() - b.float(), 0.0).abs().max()
    scale = torch.where(finite, b.float(), 0.0).abs().max()
    tolerance = {torch.float32: 1e-4, torch.float16: 1e-2}.get(a.dtype, 3e-2)
    return bool(difference <= tolerance * scale + 1e-30)


def _clock(device: torch.device) -> Stopwatch:
    """Seconds that a call holds anybody up: on a GPU its own time, or the time to issue it where that is longer."""
    clock = stopwatch(device)
    if device.type != "cuda":
        return clock

    def longer(call: Callable[[], object]) -> float:
        issued: list[float] = []
        seconds = clock(lambda: issued.append(wall_clock(call)))
        return max(seconds, *issued)

    return longer


def _fastest(runs: dict[str, Callable[[], Tensor]], clock: Stopwatch) -> dict[str, float]:
    """Seconds of each, the least of several rounds in which they take turns."""
    times = {name: float("inf") for name in runs}
    begin = time.perf_counter()
    for round_ in range(_MOST):
        for name, call in runs.items():
            times[name] = min(times[name], clock(call))
        if round_ + 1 >= _FEWEST and time.perf_counter() - begin > _SECONDS * len(runs):
            break
    return times
