"""2:4 weights through cuSPARSELt, each by the fastest algorithm that is right at its size.

For every size of weight and every batch up to the next power of two, all algorithms and the split-k that cuSPARSELt's
own search finds are checked against float32 on random numbers, then timed. The choice is kept on disk by card and
versions, and checked once more in each process that reads it; there weights alike share it.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm.kernels import cusparselt, on_gpu
from lightning_nm.kernels.cusparselt import Algorithm
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import found
from lightning_nm.sparse.backends import BACKENDS, Operand
from lightning_nm.sparse.gpu_backends import Gpu, GpuOperand, matrix
from lightning_nm.sparse.timing import stopwatch

_FILE = "cusparselt"
_ROUNDS = 5
_checked: dict[str, Algorithm] = {}
"""What was found right in this process, by `_key`."""


class Cusparselt(Gpu):
    """For 2:4 weights, and those sparser ones that are 2:4 too."""

    name = "cusparselt"
    packs_fast = True

    def _no_card(self, weight: Tensor) -> str | None:
        if (reason := self._no_cuda(weight)) is not None:
            return reason
        return None if torch.backends.cusparselt.is_available() else "this torch has no cuSPARSELt"

    def _why_not(self, weight: Tensor, pattern: NM | Block1xN, dim: int, groups: int) -> str | None:
        if prod(weight.shape[2:]) != 1:
            return "to copy the patches of k x k convolutions would cost what 2:4 gains"
        if groups > 1:
            return "cuSPARSELt multiplies no grouped convolutions"
        rows = matrix(weight, dim)
        if rows.shape[0] % cusparselt.SIDE or rows.shape[1] % cusparselt.SIDE:
            return f"cuSPARSELt takes multiples of {cusparselt.SIDE}, not {list(rows.shape)}"
        return None if cusparselt.is_two_of_four(rows) else "cuSPARSELt multiplies 2:4 weights only"

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        rows = matrix(weight, dim)
        return GpuOperand(len(rows), _Product(rows))

    def hold_known(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        rows = matrix(weight, dim)
        return GpuOperand(len(rows), _Product(rows, known=True))


class _Product:
    """Multiplies, and finds out how at each new size."""

    def __init__(self, rows: Tensor, *, known: bool = False) -> None:
        with on_gpu.on_device(rows):
            self._rows, self._compressed = rows, cusparselt.compress(rows, known=known)
        self._algorithms: dict[tuple[int, bool], Algorithm] = {}

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        size = 1 << (len(x) - 1).bit_length(), bias is not None
        with on_gpu.on_device(x):
            if size not in self._algorithms:
                self._algorithms[size] = choose(self._rows, self._compressed, *size)
            return cusparselt.matmul(x, self._compressed, bias, self._algorithms[size])


def choose(rows: Tensor, compressed: Tensor, most: int, with_bias: bool) -> Algorithm:
    """The fastest algorithm for ``most`` rows of x, a power of two, that is right there and just above half of them.

    By what was found earlier or by a search.

    Raises:
        RuntimeError: none is right.
    """
    key = _key(rows, most, with_bias)
    if key not in _checked:
        _checked[key] = _search(key, rows, compressed, most, with_bias)
    return _checked[key]


def _search(key: str, rows: Tensor, compressed: Tensor, most: int, with_bias: bool) -> Algorithm:
    problems = [_Problem(rows, batch, with_bias) for batch in dict.fromkeys((most, most // 2 + 1))]
    known = _algorithm(found.read(_FILE, key))
    if known is not None and all(problem.is_solved(compressed, known) for problem in problems):
        return known
    x, bias = problems[0].x, problems[0].bias
    every = cusparselt.algorithms(x, compressed, bias)
    right = [each for each in every if all(problem.is_solved(compressed, each) for problem in problems)]
    if not right:
        raise RuntimeError(f"no algorithm of cuSPARSELt gives what dense gives at {most} x {list(rows.shape)}")
    calls = {each: partial(cusparselt.matmul, x, compressed, bias, each) for each in right}
    clock = stopwatch(rows.device)
    times = dict.fromkeys(calls, float("inf"))
    for _ in range(_ROUNDS):
        for each, call in calls.items():
            times[each] = min(times[each], clock(call))
    fastest = min(right, key=lambda each: times[each])
    found.write(_FILE, key, list(fastest))
    return fastest


class _Problem:
    """Random numbers, and their product in float32."""

    def __init__(self, rows: Tensor, batch: int, with_bias: bool) -> None:
        like = {"dtype": rows.dtype, "device": rows.device}
        generator = torch.Generator(rows.device).manual_seed(0)
        self.x = torch.randn(batch, rows.shape[1], generator=generator, **like)  # type: ignore[call-overload]
        self.bias = torch.randn(len(rows), generator=generator, **like) if with_bias else None  # type: ignore[call-overload]
        wide = [None if tensor is None else tensor.float() for tensor in (self.x, rows, self.bias)]
        with torch.autocast(rows.device.type, enabled=False):  # a training step's would make both 16-bit
            self._expected = F.linear(*wide)  # type: ignore[arg-type]
            size = F.linear(*[None if tensor is None else tensor.abs() for tensor in wide])  # type: ignore[arg-type]
        self._allowed = 2 * torch.finfo(rows.dtype).eps * self._expected.abs() + 1e-3 * size

    def is_solved(self, compressed: Tensor, algorithm: Algorithm) -> bool:
        try:
            out = cusparselt.matmul(self.x, compressed, self.bias, algorithm)
        except RuntimeError:  # it does not take these sizes
            return False
        return bool(((out.float() - self._expected).abs() <= self._allowed).all())


def _key(rows: Tensor, most: int, with_bias: bool) -> str:
    card = torch.cuda.get_device_name(rows.device) if rows.is_cuda else "none"
    versions = f"torch {torch.__version__}, cuSPARSELt {torch.backends.cusparselt.version()}"
    return f"{card}; {versions}; {rows.dtype}; {len(rows)} x {rows.shape[1]}; batch {most}; bias {with_bias}"


def _algorithm(entry: object) -> Algorithm | None:
    """From a file that anybody may have written."""
    if isinstance(entry, list) and len(entry) == len(Algorithm()) and all(type(number) is int for number in entry):
        return Algorithm(*entry)
    return None


BACKENDS["cusparselt"] = Cusparselt()
