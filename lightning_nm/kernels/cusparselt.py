"""2:4 products by NVIDIA's cuSPARSELt, through torch's raw calls.

torch's own tensor for 2:4 weights passes no split-k, and its default algorithm can be slower than dense
(pytorch/pytorch#153825); some algorithms gave wrong numbers (#155333). So every algorithm is at hand here, and whoever
takes one checks it first: `lightning_nm.sparse.cusparselt`.

    compressed  [O * I * 9 / 16], of a 16-bit dtype: the weights kept, and two bits for the place of each
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 16
"""Outputs and inputs of a 16-bit weight are a multiple."""
_BATCH = 8
"""Rows of x are filled up to a multiple."""


class Algorithm(NamedTuple):
    """How cuSPARSELt multiplies."""

    alg_id: int = 0
    split_k: int = 1
    split_k_mode: int = -1


def compress(rows: Tensor, *, known: bool = False) -> Tensor:
    """Of ``rows`` ``[O, I]``.

    Args:
        known: to be 2:4, so that nobody looks: nothing waits for the card.

    Raises:
        ValueError: a group of four holds more than two weights, from which cuSPARSELt would make garbage; or a side is
            no multiple of 16.
    """
    if rows.shape[0] % SIDE or rows.shape[1] % SIDE:
        raise ValueError(f"cuSPARSELt takes multiples of {SIDE} outputs and inputs, not {tuple(rows.shape)}")
    if not known and not is_two_of_four(rows):
        raise ValueError(f"a weight of shape {tuple(rows.shape)} is not 2:4")
    # in one pass row-major, and +0 for -0, which some take for a weight
    out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    return torch._cslt_compress(torch.add(rows.detach(), 0.0, out=out))


def is_two_of_four(rows: Tensor) -> bool:
    """Whether every group of four inputs holds two weights at most."""
    if rows.shape[1] % 4:
        return False
    return not bool(((rows != 0).unflatten(1, (-1, 4)).sum(2) > 2).any())  # type: ignore[no-untyped-call]


def matmul(x: Tensor, compressed: Tensor, bias: Tensor | None, algorithm: Algorithm) -> Tensor:
    """``x @ rows^T + bias`` of x ``[B, I]`` of the weight's dtype."""
    out = torch._cslt_sparse_mm(compressed, _columns(x), bias=bias, transpose_result=True, **algorithm._asdict())
    return out[: len(x)]


def algorithms(x: Tensor, compressed: Tensor, bias: Tensor | None) -> list[Algorithm]:
    """Every algorithm to try, the default first; some may refuse these sizes. It multiplies, and so wants real x."""
    search = getattr(getattr(torch._C, "_cusparselt", None), "mm_search", None)
    if search is None:
        return [Algorithm()]
    found, split_k, split_k_mode, limit = search(compressed, _columns(x), bias, None, None, True)
    every = [Algorithm(), Algorithm(found, split_k, split_k_mode), *map(Algorithm, range(limit))]
    if split_k > 1:
        every += [Algorithm(each, split_k, split_k_mode) for each in range(limit)]
    return list(dict.fromkeys(every))


def _columns(x: Tensor) -> Tensor:
    """``[I, B]``, filled up; the memory stays that of x."""
    return F.pad(x, (0, 0, 0, -len(x) % _BATCH)).contiguous().T
