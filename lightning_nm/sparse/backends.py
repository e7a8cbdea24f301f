"""Who may multiply with a sparse weight, and in which form each holds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_nm import kernels
from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse.blocks import PackedBlocks
from lightning_nm.sparse.nm import PackedNM


class Operand(Protocol):
    """A weight in the form in which a backend multiplies it. Its sums run over ``dim``, which linear calls ``[I]``."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight^T + bias`` of x ``[..., I]``."""

    def convolution(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        """Of x ``[B, C, *sizes]``, as torch does it, with the memory format of x."""


def pack(weight: Tensor, pattern: NM | Block1xN, *, dim: int = 1) -> PackedNM | PackedBlocks:
    """Pack a weight that obeys ``pattern``: see `PackedNM.pack` and `PackedBlocks.pack`."""
    if isinstance(pattern, NM):
        return PackedNM.pack(weight, pattern, dim=dim)
    return PackedBlocks.pack(weight, pattern, dim=dim)


class Backend(ABC):
    """One way to multiply."""

    name: str
    device: str | None = None
    """The type of devices that it is for; None: any."""
    packs_fast = False
    """Whether to pack a weight costs little beside a product of many rows, so that training may do it at each step."""

    @abstractmethod
    def why_not(self, weight: Tensor, pattern: NM | Block1xN, x: Tensor, dim: int = 1) -> str | None:
        """Why it cannot multiply x with this weight, or None if it can."""

    @abstractmethod
    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        """The weight in its form."""

    def hold_known(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        """`hold` of a weight that is known to obey its pattern: nobody looks at it, so that nothing waits for a GPU."""
        return self.hold(weight, pattern, dim)


class DenseOperand:
    """A weight as it is."""

    def __init__(self, weight: Tensor, dim: int) -> None:
        self.weight, self.dim = weight, dim

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight if self.dim == 1 else self.weight.T, bias)

    def convolution(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        return convolution.dense(x, self.weight, bias)


class Dense(Backend):
    """What torch does with a dense weight."""

    name = "dense"

    def why_not(self, weight: Tensor, pattern: NM | Block1xN, x: Tensor, dim: int = 1) -> str | None:
        return None

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        return DenseOperand(weight, dim)


class PrepackedOperand:
    """A dense weight in the order in which oneDNN reads it."""

    def __init__(self, weight: Tensor, dim: int) -> None:
        self._weight, self._dim = weight, dim
        self._prepacked: dict[Convolution | None, Tensor] = {}

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if None not in self._prepacked:
            weight = self._weight if self._dim == 1 else self._weight.T.contiguous()
            self._prepacked[None] = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._prepacked[None], bias, "none", [], "")
        return out

    def convolution(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        _, stride, padding, dilation, groups = convolution
        if convolution not in self._prepacked:
            self._prepacked[convolution] = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, padding, stride, dilation, groups, x.shape
            )
        weight = self._prepacked[convolution]
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, padding, stride, dilation, groups, "none", [], ""
        )
        return out.contiguous(memory_format=memory_format(x))


class Prepacked(Backend):
    """A dense weight, prepacked: the best dense path that torch has on a CPU, which eager models do not use."""

    name = "onednn"
    device = "cpu"

    def why_not(self, weight: Tensor, pattern: NM | Block1xN, x: Tensor, dim: int = 1) -> str | None:
        if weight.device.type != "cpu":
            return "oneDNN is for CPUs"
        if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return "this torch is built without oneDNN"
        if x.dtype != torch.float32 or weight.dtype != torch.float32:
            return "prepacked weights are float32"
        return "it prepacks no kernels of one dimension" if weight.dim() == 3 else None

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        return PrepackedOperand(weight, dim)


class PackedOperand:
    """A packed weight whose products go straight to the kernels: torch's dispatcher costs as much as a small layer.

    Nobody asks for gradients here, and sizes, dtypes and devices have been looked at.
    """

    def __init__(self, packed: PackedNM | PackedBlocks) -> None:
        self._multiply: Callable[[Tensor, Tensor | None], Tensor]
        self._convolve: Callable[[Tensor, Tensor | None, Convolution], Tensor]
        if isinstance(packed, PackedNM):
            weight, layout, outputs = (packed.values, packed.positions), packed.layout, packed.outputs
            self._multiply = lambda x, bias: kernels.nm_matmul(x, *weight, bias, layout, outputs)
            self._convolve = lambda x, bias, c: kernels.nm_convolution(x, *weight, bias, layout, outputs, c)
            self._outputs = outputs
        else:
            values, where = packed.values, (packed.inputs, packed.starts)
            self._multiply = lambda x, bias: kernels.block_matmul(x, values[:, 0], *where, bias)
            self._convolve = lambda x, bias, c: kernels.block_convolution(x, values, *where, bias, c)
            self._outputs = (len(packed.starts) - 1) * values.shape[2]

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
        return self._multiply(rows, bias).view(*x.shape[:-1], self._outputs)

    def convolution(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        return self._convolve(x, bias, convolution)


class Cpu(Backend):
    """Packed weights and compiled kernels."""

    name = "cpu"
    device = "cpu"
    packs_fast = True

    def why_not(self, weight: Tensor, pattern: NM | Block1xN, x: Tensor, dim: int = 1) -> str | None:
        if weight.device.type != "cpu":
            return "its kernels are for CPUs"
        if kernels.compiled_cpu() is None:
            return "numba is not there or does not import, and so there are no compiled kernels"
        for tensor in (weight, x):
            if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
                return f"no kernel for {tensor.dtype}"
        return None

    def hold(self, weight: Tensor, pattern: NM | Block1xN, dim: int) -> Operand:
        return PackedOperand(pack(weight, pattern, dim=dim))


BACKENDS: dict[str, Backend] = {backend.name: backend for backend in (Dense(), Prepacked(), Cpu())}
"""By name, the dense one first; `lightning_nm.sparse.gpu_backends` adds its own."""


def backends_for(device: torch.device) -> dict[str, Backend]:
    """Those made for such a device, the dense one first."""
    return {name: each for name, each in BACKENDS.items() if each.device in (None, device.type)}
