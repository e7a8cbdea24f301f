"""2:4 weights through cuSPARSELt, each by the fastest algorithm that is right at its size.

For every size of weight and every batch up to the next power of two, all algorithms and the split-k that cuSPARSELt's
own search finds are checked against float32 on random numbers, then timed. The choice is kept on disk by card and
versions, and checked once more in each process that reads it.
"""

from __future__ import annotations

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


class Cusparselt(Gpu):
    """For 2:4 weights, and those sparser ones that are 2:4 too."""

    name = "cusparselt"

    def _no_card(self, weight: Tensor) -> str | None:
        if (reason := self._no_cuda(weight)) is not None:
            return reason
        return None if torch.backends.cusparselt.is_available() else "this torch has no cuSPARSELt"

    def _why_not(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> str | None:
        rows = matrix(weight, dim)
        if rows.shape[0] % cusparselt.SIDE or rows.shape[1] % cusparselt.SIDE:
            return f"cuSPARSELt takes multiples of {cusparselt.SIDE}, not {list(rows.shape)}"
        return None if cusparselt.is_two_of_four(rows) else "cuSPARSELt multiplies 2:4 weights only"

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        rows = matrix(weight, dim)
        return GpuOperand(len(rows), _Product(rows))


class _Product:
    """Multiplies, and finds out how at each new size."""

    def __init__(self, rows: Tensor) -> None:
        with on_gpu.on_device(rows):
            self._rows, self._compressed = rows, cusparselt.compress(rows)
        self._algorithms: dict[tuple[int, bool], Algorithm] = {}

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        size = (len(x) - 1).bit_length(), bias is None
        with on_gpu.on_device(x):
            if size not in self._algorithms:
                self._algorithms[size] = choose(self._rows, self._compressed, len(x), bias is not None)
            return cusparselt.matmul(x, self._compressed, bias, self._algorithms[size])


def choose(rows: Tensor, compressed: Tensor, batch: int, with_bias: bool) -> Algorithm:
    """The fastest algorithm that is right, by what was found earlier or by a search.

    Raises:
        RuntimeError: none is right.
    """
    like = {"dtype": rows.dtype, "device": rows.device}
    generator = torch.Generator(rows.device).manual_seed(0)
    x = torch.randn(batch, rows.shape[1], generator=generator, **like)  # type: ignore[call-overload]
    bias = torch.randn(len(rows), generator=generator, **like) if with_bias else None  # type: ignore[call-overload]
    expected, allowed = _exact(x, rows, bias)

    def is_right(algorithm: Algorithm) -> bool:
        try:
            out = cusparselt.matmul(x, compressed, bias, algorithm)
        except RuntimeError:  # it does not take these sizes
            return False
        return bool(((out.float() - expected).abs() <= allowed).all())

    key = _key(rows, batch, with_bias)
    known = _algorithm(found.read(_FILE, key))
    if known is not None and is_right(known):
        return known
    right = [each for each in cusparselt.algorithms(x, compressed, bias) if is_right(each)]
    if not right:
        raise RuntimeError(f"no algorithm of cuSPARSELt gives what dense gives at {batch} x {list(rows.shape)}")
    clock = stopwatch(rows.device)
    times = dict.fromkeys(right, float("inf"))
    for _ in range(_ROUNDS):
        for each in right:
            seconds = clock(lambda each=each: cusparselt.matmul(x, compressed, bias, each))  # type: ignore[misc]
            times[each] = min(times[each], seconds)
    fastest = min(right, key=lambda each: times[each])
    found.write(_FILE, key, list(fastest))
    return fastest


def _exact(x: Tensor, rows: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(the product in float32, by how much a result may differ from it)."""
    wide = x.float(), rows.float(), None if bias is None else bias.float()
    expected = F.linear(*wide)
    size = F.linear(wide[0].abs(), wide[1].abs(), None if wide[2] is None else wide[2].abs())
    return expected, 2 * torch.finfo(x.dtype).eps * expected.abs() + 1e-3 * size


def _key(rows: Tensor, batch: int, with_bias: bool) -> str:
    card = torch.cuda.get_device_name(rows.device) if rows.is_cuda else "none"
    versions = f"torch {torch.__version__}, cuSPARSELt {torch.backends.cusparselt.version()}"
    most = 1 << (batch - 1).bit_length()
    return f"{card}; {versions}; {rows.dtype}; {len(rows)} x {rows.shape[1]}; batch {most}; bias {with_bias}"


def _algorithm(entry: object) -> Algorithm | None:
    """From a file that anybody may have written."""
    if isinstance(entry, list) and len(entry) == len(Algorithm()) and all(type(number) is int for number in entry):
        return Algorithm(*entry)
    return None


BACKENDS["cusparselt"] = Cusparselt()
