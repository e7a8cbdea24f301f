"""Who multiplies: by what was tuned on this machine, else by a measurement of those that are not without hope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import prior, tuned
from lightning_nm.sparse.backends import Operand, backends_for
from lightning_nm.sparse.choice import DENSE, Candidates, Choice, choose, faults

AUTO = "auto"
IN_GRAPH = "auto_in_graph"
"""As "auto", for models that run in a CUDA graph, where it costs nothing to issue a call."""
MEASURED = (AUTO, IN_GRAPH)

_measured: dict[tuple[object, ...], Choice] = {}


def forget() -> None:
    """Measure everything anew from now on."""
    _measured.clear()


def apply(operand: Operand, x: Tensor, bias: Tensor | None, convolution: Convolution | None) -> Tensor:
    """Linear, or the convolution."""
    return operand.linear(x, bias) if convolution is None else operand.convolution(x, bias, convolution)


@dataclass(frozen=True)
class Question:
    """Who multiplies such an x by a sparse weight?"""

    weight: Tensor
    pattern: NM | Block1xN
    dim: int
    backend: str
    """A name in `BACKENDS`, or one of `MEASURED`."""
    operand: Callable[[str], Operand]
    """The weight as a backend holds it."""
    x: Tensor
    bias: Tensor | None
    convolution: Convolution | None
    like: tuple[object, ...]
    """What x and the call have in common with others, for which the answer holds too."""

    def answer(self) -> Choice:
        if not self.x.numel():
            return Choice("dense", {}, "there is nothing to multiply")
        if self.weight.is_cuda and torch.cuda.is_current_stream_capturing():
            reason = "a CUDA graph was being captured, where nothing can be measured: run the model before"
            return Choice("dense", {}, reason, lasts=False)
        device = self.weight.device
        if self.backend not in MEASURED:
            refusal = self._refusals.get(self.backend, f"{self.backend} is not for {device.type} tensors")
            return Choice("dense", {}, refusal) if refusal else Choice(self.backend, {}, "asked for")
        # layers alike share a measurement, if the same backends can hold them
        alike = (device, self._product, self.bias is None)
        if alike not in _measured:
            try:
                _measured[alike] = self._known() or self._measured_now()
            except torch.OutOfMemoryError:  # the model itself may well fit
                return Choice("dense", {}, "there was no memory to pack and measure others")
        return _measured[alike]

    def _known(self) -> Choice | None:
        """What was tuned, if it is right."""
        known = tuned.read(self.weight.device, self._product, self._able)
        return None if known is None or faults(self._candidates(["dense", known.backend])) else known

    def tune(self, seconds: float) -> tuple[Choice, bool]:
        """Measure all that are able for some time, whatever is known; the choice, and whether it is kept on disk."""
        choice = self._chosen(self._able, seconds)
        return choice, tuned.write(choice, self.weight.device, self._product)

    @cached_property
    def _refusals(self) -> dict[str, str | None]:
        """By backend: why it cannot multiply these, or None."""
        there = backends_for(self.weight.device)
        return {name: each.why_not(self.weight, self.pattern, self.x, self.dim) for name, each in there.items()}

    @property
    def _able(self) -> list[str]:
        return [name for name, refusal in self._refusals.items() if refusal is None]

    @property
    def _product(self) -> tuple[object, ...]:
        """What tells this product from others, on any such machine; whether there is a bias does not matter."""
        weight = self.weight
        return (self.backend, weight.shape, weight.dtype, str(self.pattern), self.dim, tuple(self._able), *self.like)

    def _measured_now(self) -> Choice:
        hopeless = self._hopeless()
        able = [name for name in self._able if name not in hopeless]
        if able == ["dense"]:
            said = {name: why for name, why in {**self._refusals, **hopeless}.items() if name not in DENSE and why}
            if len(set(said.values())) == 1:
                return Choice("dense", {}, next(iter(said.values())))
            told = "; ".join(f"{name}: {why}" for name, why in said.items())
            return Choice("dense", {}, told or f"no kernels for {self.weight.device.type} tensors")
        choice = self._chosen(able)
        return replace(choice, reason="; ".join([choice.reason, *(f"{name}: {why}" for name, why in hopeless.items())]))

    def _hopeless(self) -> dict[str, str]:
        """Which of those that are able are not worth trying, and why."""
        if self.weight.device.type != "cuda":
            return {}
        if self.convolution is None:
            rows = self.x.numel() // self.x.shape[-1]
        else:
            rows = self.x.shape[0] * torch.Size(self.convolution.spatial(self.x.shape[2:])).numel()
        said = {name: prior.why_not(name, self.pattern, self.weight.numel(), rows) for name in self._able}
        return {name: why for name, why in said.items() if why}

    def _chosen(self, names: Sequence[str], seconds: float | None = None) -> Choice:
        in_graph = self.backend == IN_GRAPH
        return choose(self._candidates(names), self.weight.device, in_graph=in_graph, seconds=seconds)

    def _candidates(self, names: Sequence[str]) -> Candidates:
        x = self.x.nan_to_num(0.0, 0.0, 0.0)  # zeros that are not stored would not spread what is not finite

        def run(name: str) -> Callable[[], Tensor]:
            return lambda: apply(self.operand(name), x, self.bias, self.convolution)

        return {name: run(name) for name in names}
