"""Products with packed weights as operators of torch, so that `torch.compile` and `torch.export` see through them.

    torch.ops.lightning_nm.nm_linear(x, values, positions, bias, n, m, outputs)
    torch.ops.lightning_nm.block_linear(x, values, inputs, starts, bias)

x is ``[..., I]`` of any floating-point dtype, which the result ``[..., O]`` has; sums are in float32. Under autocast x
is cast first, as ``F.linear`` would. They have no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.kernels.packed_nm import LANES, Layout

_LIBRARY: Any = torch.library.Library("lightning_nm", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "nm_linear(Tensor x, Tensor values, Tensor positions, Tensor? bias, int n, int m, int outputs) -> Tensor"
)
_LIBRARY.define("block_linear(Tensor x, Tensor values, Tensor inputs, Tensor starts, Tensor? bias) -> Tensor")


def _nm_linear(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, outputs: int
) -> Tensor:
    layout = Layout.of(n, m, x.shape[-1])
    groups = -(-outputs // LANES)
    for name, held, size in (("values", values, layout.weights), ("positions", positions, layout.words)):
        if held.shape != (groups, layout.chunks, size, LANES):
            raise ValueError(
                f"{name} of shape {tuple(held.shape)} are not those of a {n}:{m} weight of {outputs} outputs and "
                f"{x.shape[-1]} inputs, which x of shape {tuple(x.shape)} has"
            )
    _require_bias(bias, outputs)
    out = kernels.nm_matmul(x.reshape(-1, x.shape[-1]), values, positions, bias, layout, outputs)
    return out.view(*x.shape[:-1], outputs)


def _nm_linear_fake(
    x: Tensor, values: Tensor, positions: Tensor, bias: Tensor | None, n: int, m: int, outputs: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def _block_linear(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    blocks, n = values.shape
    if inputs.shape != (blocks,):
        raise ValueError(f"{blocks} blocks have inputs of shape {tuple(inputs.shape)}")
    outputs = (len(starts) - 1) * n
    _require_bias(bias, outputs)
    out = kernels.block_matmul(x.reshape(-1, x.shape[-1]), values, inputs, starts, bias)
    return out.view(*x.shape[:-1], outputs)


def _block_linear_fake(x: Tensor, values: Tensor, inputs: Tensor, starts: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], (starts.shape[0] - 1) * values.shape[1]))


def _require_bias(bias: Tensor | None, outputs: int) -> None:
    """Kernels read as many entries as there are outputs."""
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a bias of shape {tuple(bias.shape)} for {outputs} outputs")


def _cast(name: str, device: str, key: str) -> None:
    """Under autocast x is cast to its dtype; packed weights stay as they are stored."""
    operator = getattr(ops, name)

    def call(x: Tensor, *arguments: object) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))):
            result: Tensor = operator(x.to(torch.get_autocast_dtype(device)), *arguments)
            return result

    _LIBRARY.impl(name, call, key)


ops = torch.ops.lightning_nm

for _name, _call, _fake in (
    ("nm_linear", _nm_linear, _nm_linear_fake),
    ("block_linear", _block_linear, _block_linear_fake),
):
    _LIBRARY.impl(_name, _call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lightning_nm::{_name}", _fake, lib=_LIBRARY)
    _cast(_name, "cpu", "AutocastCPU")
    _cast(_name, "cuda", "AutocastCUDA")
