"""A sparse weight in the forms in which backends hold it, and who multiplies at each size that was met."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse.backends import BACKENDS, DenseOperand, Operand
from lightning_nm.sparse.choice import Choice
from lightning_nm.sparse.decision import AUTO, Question
from lightning_nm.sparse.recognise import recognise

TRIFLE = 1e-4
"""Seconds: to ask takes some 5 us."""
Key = tuple[object, ...]
Multiply = Callable[[Tensor, Tensor | None], Tensor]
"""(x, bias) -> the product"""


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


class Dispatched:
    """A sparse weight with all the forms in which backends hold it, and the backend for each size met.

    Args:
        weight: dense storage of the sparse weight; read only.
        pattern: which it obeys, or why it obeys none: then torch multiplies.
        dim: its reduction dimension.
        backend: a name in `BACKENDS`, where that can multiply, or one of `decision.MEASURED`.
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
        self._written = self.weight.data_ptr(), self._state[-1]
        self.remembered: dict[object, Multiply] = {}
        """What multiplies for calls that were met, by whatever tells them apart: `HeldWeight` keeps it."""
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

    def unchanged(self) -> bool:
        """Whether nobody has written to the weight or moved it, as `current` asks more thoroughly."""
        pointer, version = self._written
        return version is not None and self.weight._version == version and self.weight.data_ptr() == pointer

    def product(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Tensor:
        """Linear, or the convolution."""
        return self.multiplier(x, bias, convolution)(x, bias)

    def multiplier(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Multiply:
        """What multiplies x's like, chosen now if none has been met."""
        key = self._key(x, bias, convolution)
        choice = self.choices.get(key)
        if choice is None or not choice.lasts:
            if isinstance(self.pattern, str):
                choice = Choice("dense", {}, self.pattern)
            else:
                choice = self._question(x, bias, convolution, key).answer()
            choice = self._keep(choice, x, key)
        operand = self.operand(choice.backend)
        if convolution is None:
            return operand.linear
        return lambda x, bias: operand.convolution(x, bias, convolution)

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

    def tune(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None, seconds: float) -> bool:
        """Measure every backend for x's like for some time, and keep the choice on disk, for every process.

        The weight obeys a pattern.

        Returns:
            Whether it could be written.
        """
        key = self._key(x, bias, convolution)
        choice, kept = self._question(x, bias, convolution, key).tune(seconds)
        self._keep(choice, x, key)
        return kept

    def _keep(self, choice: Choice, x: Tensor, key: Key) -> Choice:
        choice = self.choices[key] = replace(choice, size=f"x {list(x.shape)} {str(x.dtype).removeprefix('torch.')}")
        # other forms of the weight take as much memory as those that won
        kept = {made.backend for made in self.choices.values()}
        self._operands = {name: operand for name, operand in self._operands.items() if name in kept}
        return choice

    def _key(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Key:
        rows = x.numel() // max(1, self.weight.shape[self.dim])
        layout = None if convolution is None else memory_format(x)
        threads = torch.get_num_threads() if x.device.type == "cpu" else None
        # sizes up to the next power of two share a choice
        bucket = (rows - 1).bit_length() if rows else None
        return (convolution, bucket, x.dtype, layout, threads, bias is None)

    def _question(self, x: Tensor, bias: Tensor | None, convolution: Convolution | None, key: Key) -> Question:
        assert not isinstance(self.pattern, str)
        return Question(self.weight, self.pattern, self.dim, self.backend, self.operand, x, bias, convolution, key[:-1])
