"""Products with packed weights as operators of torch, so that `torch.compile` and `torch.export` see through them.

    torch.ops.lightning_nm.nm_linear(x, values, positions, bias, n, m, outputs)
    torch.ops.lightning_nm.nm_conv(x, values, positions, bias, n, m, outputs, kernel, stride, padding, dilation, groups)
    torch.ops.lightning_nm.block_linear(x, values, inputs, starts, bias)
    torch.ops.lightning_nm.block_conv(x, values, inputs, starts, bias, kernel, stride, padding, dilation, groups)

x is ``[..., I]``, or ``[B, I, *sizes]`` for a convolution, of any floating-point dtype, which the result
``[..., O]`` or ``[B, O, *sizes]`` has, and x's memory format; sums are in float32. Under autocast x is cast first, as
``F.linear`` would. They have no gradient, and say so. Shapes, dtypes and devices are checked at each
call; what packed tensors hold is checked where they are made (`PackedNM`, `PackedBlocks`): kernels that are given other
numbers compute something else, but read nothing beyond x.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.kernels.convolution import Convolution, memory_format
from lightning_nm.kernels.packed_nm import Layout
from lightning_nm.sparse.operands import check_block_conv, check_block_linear, check_nm_conv, check_nm_linear

LIBRARY: Any = torch.library.Library("lightning_nm", "DEF")  # type: ignore[no-untyped-call]
ops = torch.ops.lightning_nm


def _nm_linear(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, outputs: int
) -> Tensor:
    shape = check_nm_linear(x, values, positions, bias, n, m, outputs)
    layout = Layout.of(n, m, x.shape[-1])
    return kernels.nm_matmul(_rows(x), values, positions, bias, layout, outputs).view(shape)


def _nm_linear_fake(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(check_nm_linear(x, *packed))


def _nm_conv(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, outputs: int, *sizes: Any
) -> Tensor:
    convolution = _convolution(*sizes)
    check_nm_conv(x, values, positions, bias, n, m, outputs, convolution)
    taps = prod(convolution.kernel)
    layout = Layout.of(n, m, taps * x.shape[1] // convolution.groups, taps)
    return kernels.nm_convolution(x, values, positions, bias, layout, outputs, convolution)


def _nm_conv_fake(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, outputs: int, *sizes: Any
) -> Tensor:
    shape = check_nm_conv(x, values, positions, bias, n, m, outputs, _convolution(*sizes))
    return x.new_empty(shape).contiguous(memory_format=memory_format(x))


def _convolution(*sizes: Any) -> Convolution:
    kernel, stride, padding, dilation, groups = sizes
    return Convolution(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups)


def _block_conv(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None, *sizes: Any) -> Tensor:
    convolution = _convolution(*sizes)
    check_block_conv(x, values, inputs, starts, bias, convolution)
    return kernels.block_convolution(x, values, inputs, starts, bias, convolution)


def _block_conv_fake(
    x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None, *sizes: Any
) -> Tensor:
    shape = check_block_conv(x, values, inputs, starts, bias, _convolution(*sizes))
    return x.new_empty(shape).contiguous(memory_format=memory_format(x))


def _block_linear(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    shape = check_block_linear(x, values, inputs, starts, bias)
    return kernels.block_matmul(_rows(x), values, inputs, starts, bias).view(shape)


def _block_linear_fake(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(check_block_linear(x, *packed))


def _rows(x: Tensor) -> Tensor:
    """[B, I]"""
    return x.flatten(0, -2) if x.dim() > 1 else x[None]


def _under_autocast(operator: Any, device: str, key: str) -> Callable[..., Tensor]:
    """Cast x; packed weights stay as they are stored."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(x: Tensor, *packed: Any) -> Tensor:
        if x.is_floating_point() and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        with torch._C._ExcludeDispatchKeyGuard(excluded):
            result: Tensor = operator(x, *packed)
            return result

    return call


def _without_gradient(operator: Any) -> Callable[..., Tensor]:
    def call(*arguments: Any) -> Tensor:
        tracked = [a for a in arguments if isinstance(a, Tensor) and a.requires_grad]
        if torch.is_grad_enabled() and tracked:
            raise RuntimeError(f"{operator} has no gradient: packed weights are for evaluation, under torch.no_grad()")
        with torch._C._AutoDispatchBelowAutograd():
            result: Tensor = operator(*arguments)
            return result

    return call


def register(name: str, arguments: str, call: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """An operator of x first, then of what is packed.

    Args:
        arguments: its schema; ``Tensor x`` first.
        call: multiplies.
        fake: the result of other tensors than real ones, without its numbers.
    """
    LIBRARY.define(f"{name}({arguments}) -> Tensor")
    LIBRARY.impl(name, call, "CompositeExplicitAutograd")
    operator = getattr(ops, name)
    LIBRARY.impl(name, _without_gradient(operator), "Autograd")
    torch.library.register_fake(f"lightning_nm::{name}", fake, lib=LIBRARY)
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        LIBRARY.impl(name, _under_autocast(operator, device, key), key)


_NM = "Tensor x, Tensor values, Tensor positions, Tensor? bias, int n, int m, int outputs"
_BLOCKS = "Tensor x, Tensor values, Tensor inputs, Tensor starts, Tensor? bias"
_SIZES = "int[] kernel, int[] stride, int[] padding, int[] dilation, int groups"

register("nm_linear", _NM, _nm_linear, _nm_linear_fake)
register("nm_conv", f"{_NM}, {_SIZES}", _nm_conv, _nm_conv_fake)
register("block_linear", _BLOCKS, _block_linear, _block_linear_fake)
register("block_conv", f"{_BLOCKS}, {_SIZES}", _block_conv, _block_conv_fake)
