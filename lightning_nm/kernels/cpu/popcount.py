"""`lightning_nm.kernels.bits.popcount`, compiled by numba: the processor's own instruction."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor


def _emit_ones(typing: Any, word: Any) -> Any:
    """Number of set bits of an unsigned integer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.zext(builder.ctpop(args[0]), context.get_value_type(types.uint64))

    if word == types.uint64:  # nothing to widen
        return types.uint64(word), lambda context, builder, signature, args: builder.ctpop(args[0])
    return types.uint64(word), codegen


_ones: Any = intrinsic(_emit_ones)


@njit(nogil=True)
def _count(words):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    for word in words:
        total += _ones(word)
    return total


def popcount(bits: Tensor) -> int:
    """Number of set bits of a contiguous uint8 tensor on the CPU."""
    array = bits.numpy()
    whole = array.size // 8 * 8
    return int(_count(array[:whole].view(np.uint64)) + _count(array[whole:]))
