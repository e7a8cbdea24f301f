"""Under `torch.compile`: one operator that dispatches when it runs, at sizes that the graph need not know.

    torch.ops.lightning_nm.product(x, weight, bias, dim, kernel, stride, padding, dilation, groups)

``weight`` is the dense one. Who multiplies by it in this process is found by where it lies in memory; where nobody
does, as in an exported program that was loaded, torch does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.sparse.backends import DenseOperand
from lightning_nm.sparse.decision import apply
from lightning_nm.sparse.dispatch import dispatched
from lightning_nm.sparse.ops import LIBRARY, ops

_NO_CONVOLUTION = Convolution((), (), (), (), 0)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int, convolution: Convolution | None) -> Tensor:
    """Linear, or the convolution, as an operator."""
    out: Tensor = ops.product(x, weight, bias, dim, *(convolution or _NO_CONVOLUTION))
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int, *sizes: Any) -> Tensor:
    convolution = _convolution(*sizes)
    there = dispatched(weight)
    if there is None:
        return apply(DenseOperand(weight, dim), x, bias, convolution)
    return (there if x.dtype == there.weight.dtype else there.cast(x.dtype)).product(x, bias, convolution)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, dim: int, *sizes: Any) -> Tensor:
    convolution = _convolution(*sizes)
    if convolution is None:
        return x.new_empty(*x.shape[:-1], weight.shape[1 - dim])
    shape = (x.shape[0], weight.shape[0], *convolution.spatial(x.shape[2:]))
    return x.new_empty(shape).contiguous(memory_format=memory_format(x))


def _convolution(kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Convolution | None:
    if not groups:
        return None
    return Convolution(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups)


LIBRARY.define(
    "product(Tensor x, Tensor weight, Tensor? bias, int dim, int[] kernel, int[] stride, int[] padding, "
    "int[] dilation, int groups) -> Tensor",
    # what it packs at its first call must not lie in the memory of a CUDA graph that torch.compile records
    tags=(torch.Tag.cudagraph_unsafe,),
)
LIBRARY.impl("product", _product, "CompositeExplicitAutograd")
torch.library.register_fake("lightning_nm::product", _fake, lib=LIBRARY)
