"""What to expect of the kernels for GPUs before anything has been measured: those without hope are not tried.

To try one costs its packing, and seconds of compiling. The model: a product takes its launches and the longest of three
things, memory traffic, tensor cores and the issue of instructions, in the time in which a card streams one dense 16-bit
weight. Its constants are a Hopper card's memory and tensor cores, and instructions counted in machine code
(tests/kernels/triton); **they are not measured**, so only what stays far behind dense is refused, and whatever
`lightning-nm bench --tune` has found on a card goes before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lightning_nm.patterns import NM, Block1xN

HOPELESS = 0.75
"""Below this share of the dense product's speed a backend is not tried."""
_BANDWIDTH = 4.3e12
"""Bytes per second."""
_BALANCE = 184
"""Rows of x at which a dense product's arithmetic takes as long as reading its weight."""
_ISSUE = 13.8
"""Instructions that issue while one dense weight streams by."""
_LAUNCH = 2e-6
"""Seconds, of each kernel that a product consists of."""


class _Cost(NamedTuple):
    """Of a product, per dense weight, in units of the time in which one streams by."""

    memory: float
    arithmetic: float
    launches: int
    issue: float = 0.0


def _packed(pattern: NM | Block1xN) -> float:
    """Bytes of a packed 16-bit weight over the dense one's."""
    if isinstance(pattern, Block1xN):
        return pattern.density
    return pattern.density * (1 + max(1, (pattern.m - 1).bit_length()) / 16)


def _gathered(pattern: NM | Block1xN, rows: int) -> _Cost:
    # some 8 instructions to find a weight and its input, 2.6 to multiply each row
    issue = pattern.density * (8.3 + 2.6 * rows) / _ISSUE
    return _Cost(_packed(pattern), 0.0, 1 + (rows > 1), issue)


def _bitplane(pattern: NM | Block1xN, rows: int) -> _Cost:
    # decoding takes 3 instructions per dense weight, and 2.8 more for each weight of a group beyond the first
    n = pattern.n if isinstance(pattern, NM) else 1
    return _Cost(_packed(pattern), rows / _BALANCE, 2, (3.0 + 2.8 * (n - 1) * pattern.density) / _ISSUE)


def _sparse_mma(pattern: NM | Block1xN, rows: int) -> _Cost:
    # what a 2:4 weight takes, whatever the pattern; sums of 64 rows at a time, at about the dense rate
    return _Cost(9 / 16 * max(1, -(-rows // 64)), rows / _BALANCE, 1 + (rows > 8), 1.2 / _ISSUE)


def _vectorwise(pattern: NM | Block1xN, rows: int) -> _Cost:
    # of the tensor cores' rate some 70 % is reached while rows of x are gathered
    return _Cost(pattern.density, pattern.density * rows / _BALANCE / 0.7, 2)


def _cusparselt(pattern: NM | Block1xN, rows: int) -> _Cost:
    # published: some 1.5 times dense at 1024 rows, 1.6 at 4096 and more; as fast or slower below 256, far slower at one
    return _Cost(1.4, rows / _BALANCE / 1.6, 1)


_COSTS: dict[str, Callable[[NM | Block1xN, int], _Cost]] = {
    "gathered": _gathered,
    "bitplane": _bitplane,
    "vectorwise": _vectorwise,
    "sparse_mma": _sparse_mma,
    "cusparselt": _cusparselt,
}


def expected(backend: str, pattern: NM | Block1xN, weights: int, rows: int) -> float | None:
    """How many times as fast as the dense product a backend may be; None: the model knows nothing of it.

    >>> round(expected("bitplane", NM(1, 4), 14336 * 4096, 16), 1)
    2.5
    >>> round(expected("bitplane", NM(1, 4), 14336 * 4096, 1024), 1)
    1.0
    >>> round(expected("cusparselt", NM(2, 4), 14336 * 4096, 4096), 1)
    1.6

    Args:
        weights: of the dense weight.
        rows: of x, or pixels of the result.
    """
    if backend not in _COSTS:
        return None
    return _seconds(_Cost(1.0, rows / _BALANCE, 1), weights) / _seconds(_COSTS[backend](pattern, rows), weights)


def _seconds(cost: _Cost, weights: int) -> float:
    streamed = 2 * weights / _BANDWIDTH
    return _LAUNCH * cost.launches + streamed * max(cost.memory, cost.arithmetic, cost.issue)


def why_not(backend: str, pattern: NM | Block1xN, weights: int, rows: int) -> str | None:
    """Why a backend is not worth trying, or None: see `expected`."""
    times = expected(backend, pattern, weights, rows)
    return f"{times:.2f} of dense expected, not tried" if times is not None and times < HOPELESS else None
