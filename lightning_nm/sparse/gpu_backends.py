"""Who multiplies with a sparse weight on a GPU. Importing this module adds them to `lightning_nm.sparse.BACKENDS`.

Triton is imported when the first CUDA tensor asks. Convolutions that have no kernel of their own are products of
patches, which are the pixels themselves where the kernel is 1x1.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from math import prod

import torch
from torch import Tensor

from lightning_nm.kernels import (
    bitplane_conv,
    bitplane_nm,
    gathered_nm,
    nm_mask,
    on_gpu,
    vectorwise_nm,
)
from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.patterns.base import other_dim
from lightning_nm.sparse.backends import BACKENDS, Backend, Operand
from lightning_nm.sparse.gpu_operands import HALF
from lightning_nm.sparse.recognise import DENSEST

_OLDEST_CARD = (8, 0)
"""Compute capability: tensor cores that multiply bfloat16."""


class GpuOperand:
    """A packed weight ``[O, I]``; of filters I are taps and channels.

    Args:
        outputs: O.
        multiply: of x ``[B, I]``, B at least 1, and a bias.
        convolve: of x ``[B, C, *sizes]``, a bias and a convolution; None: patches of x are multiplied.
    """

    def __init__(
        self,
        outputs: int,
        multiply: Callable[[Tensor, Tensor | None], Tensor],
        convolve: Callable[[Tensor, Tensor | None, Convolution], Tensor] | None = None,
    ) -> None:
        self._outputs, self._multiply = outputs, multiply
        self._convolve = convolve or self._patches

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._multiply(x.reshape(-1, x.shape[-1]), bias).view(*x.shape[:-1], self._outputs)

    def convolution(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        return self._convolve(x, bias, convolution)

    def _patches(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        out = self._multiply(convolution.patches(x), bias)
        out = out.view(len(x), *convolution.spatial(x.shape[2:]), self._outputs).movedim(-1, 1)
        return out.contiguous(memory_format=memory_format(x))


class Gpu(Backend):
    """A backend of kernels for CUDA cards, 16-bit weights and inputs of the same dtype."""

    device = "cuda"
    most: int | None = None
    """Rows of x, or pixels of it, beyond which another is faster in any case."""

    def why_not(self, weight: Tensor, pattern: NM | Block1xN, x: Tensor, dim: int = 1) -> str | None:
        if (reason := self._no_card(weight)) is not None:
            return reason
        if weight.dtype not in HALF or x.dtype != weight.dtype:
            return f"no kernel for {weight.dtype if weight.dtype not in HALF else x.dtype} on a GPU"
        inputs, groups = weight.shape[dim], 1
        if weight.dim() > 2:
            inputs, groups = x.shape[1], x.shape[1] // weight.shape[1]
        if self.most is not None and x.numel() // max(1, inputs) > self.most:
            return f"more than {self.most} rows"
        return self._why_not(weight, pattern, dim, groups)

    def _no_card(self, weight: Tensor) -> str | None:
        """Why its kernels do not run where the weight lies."""
        return self._no_cuda(weight) or on_gpu.no_triton()

    def _no_cuda(self, weight: Tensor) -> str | None:
        if weight.device.type != "cuda":
            return "its kernels are for CUDA cards"
        if torch.cuda.get_device_capability(weight.device) < _OLDEST_CARD:
            return f"the card's compute capability is below {'.'.join(map(str, _OLDEST_CARD))}"
        return None

    @abstractmethod
    def _why_not(self, weight: Tensor, pattern: NM | Block1xN, dim: int, groups: int) -> str | None:
        """Why it has no kernel for this weight, in so many groups."""


def matrix(weight: Tensor, dim: int) -> Tensor:
    """``[O, I]``, of filters ``[O, T * I]``, their T taps one after the other."""
    weight = weight.detach()
    return weight.movedim((other_dim(dim, weight.dim()), dim), (0, 1)).movedim(1, -1).flatten(1)


def whole_groups(rows: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """(rows, mask that keeps exactly N of every M), as the layouts want them: zeros fill groups up, from the left.

    Raises:
        ValueError: a group holds more than N weights.
    """
    mask = nm_mask((rows != 0).float(), n, m, 1)
    if bool(rows.masked_fill(mask, 0.0).count_nonzero()):
        raise ValueError(f"a weight of shape {tuple(rows.shape)} is not {n}:{m}")
    return rows, mask


class Gathered(Gpu):
    """For few rows of x: each weight gathers its own input."""

    name = "gathered"
    most = gathered_nm.LARGEST_BATCH

    def _why_not(self, weight: Tensor, pattern: NM | Block1xN, dim: int, groups: int) -> str | None:
        if not isinstance(pattern, NM):
            return "no kernel for 1xN blocks"
        if groups > 1:
            return "no kernel for grouped convolutions of few pixels"
        layout = gathered_nm.Layout.of(pattern.n, pattern.m, weight.shape[dim])
        return None if layout else f"the positions of {pattern} do not fit a word"

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        assert isinstance(pattern, NM)
        rows, mask = whole_groups(matrix(weight, dim), pattern.n, pattern.m)
        layout = gathered_nm.Layout.of(pattern.n, pattern.m, rows.shape[1])
        assert layout is not None
        packed = on_gpu.pack_gathered(rows, mask, layout)
        return GpuOperand(len(rows), lambda x, bias: on_gpu.gathered(x, *packed, bias, layout))


class Bitplane(Gpu):
    """For some tens of rows of x: the weight is decoded in registers, for tensor cores."""

    name = "bitplane"
    most = 64

    def _why_not(self, weight: Tensor, pattern: NM | Block1xN, dim: int, groups: int) -> str | None:
        if not isinstance(pattern, NM):
            return "no kernel for 1xN blocks"
        if not bitplane_conv.fits(len(weight), groups):
            return f"no kernel for groups that are no whole {bitplane_nm.ROWS} outputs"
        return None if bitplane_nm.supports(pattern.n, pattern.m) else f"no kernel for {pattern}"

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        assert isinstance(pattern, NM)
        m = pattern.m
        rows, mask = whole_groups(matrix(weight, dim), pattern.n, m)
        packed, outputs = on_gpu.pack_bitplane(rows, mask, pattern.n, m, prod(weight.shape[2:])), len(rows)
        return GpuOperand(
            outputs,
            lambda x, bias: on_gpu.bitplane(x, *packed, bias, m, outputs),
            lambda x, bias, convolution: on_gpu.bitplane_conv(x, *packed, bias, m, outputs, convolution),
        )


class Vectorwise(Gpu):
    """For weights of which 32 consecutive outputs or more share their inputs, told by their zeros: N:M or 1xN."""

    name = "vectorwise"

    def _why_not(self, weight: Tensor, pattern: NM | Block1xN, dim: int, groups: int) -> str | None:
        if not vectorwise_nm.fits(least := vectorwise_nm.ROWS[-1], len(weight), groups):
            return f"no kernel for groups that are no whole {least} outputs"
        block, share = vectorwise_nm.best_block(matrix(weight, dim), groups)
        return None if share <= DENSEST else f"{block} outputs together need {share:.0%} of the inputs"

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        outputs = weight.shape[other_dim(dim, weight.dim())]

        @cache
        def packed(groups: int = 1) -> tuple[Tensor, Tensor]:
            rows = matrix(weight, dim)
            return vectorwise_nm.pack(rows, vectorwise_nm.best_block(rows, groups)[0])

        def convolve(x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
            return on_gpu.vectorwise_conv(x, *packed(convolution.groups), bias, outputs, convolution)

        return GpuOperand(outputs, lambda x, bias: on_gpu.vectorwise(x, *packed(), bias, outputs), convolve)


BACKENDS.update((backend.name, backend) for backend in (Gathered(), Bitplane(), Vectorwise()))
