"""All backends side by side on one product: how long each takes, whether it is right, and which one "auto" takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse.backends import DenseOperand, backends_for
from lightning_nm.sparse.choice import DENSE, Choice
from lightning_nm.sparse.decision import AUTO, MEASURED, apply, forget
from lightning_nm.sparse.dispatch import Dispatched
from lightning_nm.sparse.timing import Timing, stopwatch, take_turns


@dataclass(frozen=True)
class Comparison:
    """What came out, by backend. Each is in one of ``times``, ``refusals`` and ``wrong``."""

    times: dict[str, Timing]
    refusals: dict[str, str]
    """Why it cannot multiply these."""
    wrong: dict[str, str]
    """How its result is wrong; it was not timed."""
    auto: Choice | None
    """What "auto" takes, by a measurement of its own; None: a backend broke down."""
    tuned: bool = False
    """Whether what was found is kept on disk."""

    @property
    def fastest(self) -> str | None:
        """Of the sparse backends; None: there is no result of any."""
        sparse = [name for name in self.times if name not in DENSE]
        return min(sparse, key=lambda name: self.times[name].median, default=None)

    def over(self, *baselines: str) -> float | None:
        """How many times as fast as the fastest of some backends the fastest sparse one is."""
        there = [self.times[name].median for name in baselines if name in self.times]
        return min(there) / self.times[self.fastest].median if there and self.fastest else None


def compare(
    weight: Tensor,
    pattern: NM | Block1xN,
    dim: int,
    x: Tensor,
    bias: Tensor | None = None,
    convolution: Convolution | None = None,
    *,
    seconds: float = 1.0,
    tune: bool = False,
) -> Comparison:
    """Multiply x by a sparse weight with every backend, in turn; each result is held against one in float64.

    >>> x, weight = torch.randn(4, 64), torch.randn(32, 64)
    >>> compared = compare(weight * NM(2, 4).mask(weight), NM(2, 4), 1, x, seconds=0.01)
    >>> sorted(compared.times), compared.wrong
    (['cpu', 'dense', 'onednn'], {})

    Args:
        weight: obeys ``pattern`` along ``dim``, its reduction dimension.
        bias: None, or ``[outputs]``.
        convolution: None: it is a linear weight.
        seconds: of measuring, for all backends together; five rounds are made in any case.
        tune: keep what is found on disk, for all that "auto" and "auto_in_graph" decide on this machine; not where
            something is wrong. ``pattern`` is as `recognise` tells it, as it does for a model's weights.
    """
    forget()  # "auto" is to decide at this very size
    dispatched = Dispatched(weight, pattern, dim)
    expected, allowed = _exact(weight, dim, x, bias, convolution)
    calls: dict[str, Callable[[], Tensor]] = {}
    refusals, wrong, broken = {}, {}, False
    for name, backend in backends_for(weight.device).items():
        if (refusal := backend.why_not(weight, pattern, x, dim)) is not None:
            refusals[name] = refusal
            continue
        try:
            call = partial(apply, dispatched.operand(name), x, bias, convolution)
            result = call()
        except Exception as error:  # a backend that breaks down is told beside those that do not
            wrong[name], broken = f"{type(error).__name__}: {' '.join(str(error).split())}", True
            continue
        if (fault := _fault(result, x.dtype, expected, allowed)) is None:
            calls[name] = call
        else:
            wrong[name] = fault
    times = take_turns(calls, seconds, clock=stopwatch(weight.device)) if calls else {}
    kept = False
    if tune and not wrong:
        ways = MEASURED if weight.is_cuda else (AUTO,)
        tuners = [Dispatched(weight, pattern, dim, way) for way in ways]
        kept = all(tuner.tune(x, bias, convolution, seconds) for tuner in tuners)
    if not broken:
        dispatched.product(x, bias, convolution)
    return Comparison(times, refusals, wrong, None if broken else dispatched.made()[0], kept)


def _exact(
    weight: Tensor, dim: int, x: Tensor, bias: Tensor | None, convolution: Convolution | None
) -> tuple[Tensor, Tensor]:
    """(the product in float64, by how much a result may differ from it)."""
    wide = [None if tensor is None else tensor.double() for tensor in (weight, x, bias)]
    size = [None if tensor is None else tensor.abs() for tensor in wide]

    def product(weight: Tensor | None, x: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None
        assert x is not None
        return apply(DenseOperand(weight, dim), x, bias, convolution)

    expected = product(*wide)
    # the result is rounded once; sums round with every term, and GPUs round the operands of float32 products (TF32)
    narrow = x.dtype != torch.float32 or x.device.type == "cuda"
    return expected, 2 * torch.finfo(x.dtype).eps * expected.abs() + (1e-3 if narrow else 1e-5) * product(*size)


def _fault(result: Tensor, dtype: torch.dtype, expected: Tensor, allowed: Tensor) -> str | None:
    """What is wrong with a result, or None."""
    if result.shape != expected.shape or result.dtype != dtype:
        return f"{result.dtype} of shape {list(result.shape)}, not {dtype} of {list(expected.shape)}"
    off = (result.double() - expected).abs() / (allowed + torch.finfo(torch.float32).tiny)
    entries = int((~(off <= 1)).sum())  # NaN too
    return f"{entries:,} of {off.numel():,} numbers are wrong" if entries else None
