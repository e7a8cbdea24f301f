"""Products with packed weights as operators of torch, so that `torch.compile` and `torch.export` see through them.

    torch.ops.lightning_nm.nm_linear(x, values, positions, bias, n, m, outputs)
    torch.ops.lightning_nm.block_linear(x, values, inputs, starts, bias)

x is ``[..., I]`` of any floating-point dtype, which the result ``[..., O]`` has; sums are in float32. Under autocast x
is cast first, as ``F.linear`` would. They have no gradient, and say so. Shapes, dtypes and devices are checked at each
call; what packed tensors hold is checked where they are made (`PackedNM`, `PackedBlocks`): kernels that are given other
numbers compute something else, but read nothing beyond x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.kernels.packed_nm import LANES, LARGEST_M, Layout

_LIBRARY: Any = torch.library.Library("lightning_nm", "DEF")  # type: ignore[no-untyped-call]
ops = torch.ops.lightning_nm


def _check_nm(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, outputs: int
) -> tuple[int, ...]:
    """Shape of the result."""
    _check(x, bias, outputs, values, positions)
    if not 0 < n <= m <= LARGEST_M or x.shape[-1] % m:
        raise ValueError(f"x of shape {tuple(x.shape)} does not fit {n}:{m} weights of M up to {LARGEST_M}")
    layout = Layout.of(n, m, int(x.shape[-1]))
    groups = -(-outputs // LANES)
    for name, held, size in (("values", values, layout.weights), ("positions", positions, layout.words)):
        if held.shape != (groups, layout.chunks, size, LANES):
            raise ValueError(
                f"{name} of shape {tuple(held.shape)} are not those of a {n}:{m} weight of {outputs} outputs and "
                f"{x.shape[-1]} inputs, which x of shape {tuple(x.shape)} has"
            )
    if positions.dtype != torch.int32:
        raise ValueError(f"positions are int32, not {positions.dtype}")
    return (*x.shape[:-1], outputs)


def _nm_linear(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, outputs: int
) -> Tensor:
    shape = _check_nm(x, values, positions, bias, n, m, outputs)
    layout = Layout.of(n, m, x.shape[-1])
    return kernels.nm_matmul(_rows(x), values, positions, bias, layout, outputs).view(shape)


def _nm_linear_fake(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(_check_nm(x, *packed))


def _check_blocks(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    """Shape of the result."""
    if values.dim() != 2 or inputs.shape != values.shape[:1] or starts.dim() != 1 or starts.shape[0] < 1:
        shapes = [tuple(t.shape) for t in (values, inputs, starts)]
        raise ValueError(f"values, inputs and starts are [blocks, N], [blocks] and [O / N + 1], not {shapes}")
    if inputs.dtype not in (torch.int16, torch.int32) or starts.dtype != torch.int32:
        raise ValueError(f"inputs are int16 or int32 and starts int32, not {inputs.dtype} and {starts.dtype}")
    outputs = (starts.shape[0] - 1) * values.shape[1]
    _check(x, bias, outputs, values, inputs, starts)
    return (*x.shape[:-1], outputs)


def _block_linear(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    shape = _check_blocks(x, values, inputs, starts, bias)
    return kernels.block_matmul(_rows(x), values, inputs, starts, bias).view(shape)


def _block_linear_fake(x: Tensor, *packed: Any) -> Tensor:
    return x.new_empty(_check_blocks(x, *packed))


def _check(x: Tensor, bias: Tensor | None, outputs: int, *packed: Tensor) -> None:
    if x.dim() == 0 or not x.is_floating_point():
        raise ValueError(f"x is [..., inputs] of floating-point numbers, not {x.dtype} of shape {tuple(x.shape)}")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} for {outputs} outputs")
    devices = {tensor.device for tensor in (x, *packed, *([] if bias is None else [bias]))}
    if len(devices) > 1:
        raise ValueError(f"x, the packed weight and the bias lie on {sorted(map(str, devices))}; move them to one")


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


for _name, _packed, _call, _fake in (
    ("nm_linear", "Tensor positions, Tensor? bias, int n, int m, int outputs", _nm_linear, _nm_linear_fake),
    ("block_linear", "Tensor inputs, Tensor starts, Tensor? bias", _block_linear, _block_linear_fake),
):
    _LIBRARY.define(f"{_name}(Tensor x, Tensor values, {_packed}) -> Tensor")
    _LIBRARY.impl(_name, _call, "CompositeExplicitAutograd")
    _LIBRARY.impl(_name, _without_gradient(getattr(ops, _name)), "Autograd")
    torch.library.register_fake(f"lightning_nm::{_name}", _fake, lib=_LIBRARY)
    for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _LIBRARY.impl(_name, _under_autocast(getattr(ops, _name), _device, _key), _key)
