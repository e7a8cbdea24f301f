"""Parameters that several processes share (DTensor: FSDP2, tensor parallelism), seen from one of them.

Each process holds a piece. No piece cuts a group (`uncut` sees to it), so masks and hidden parts are found piece by
piece; only counts and checkpoints need the other processes.
"""

from __future__ import annotations

import sys
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lightning_nm.patterns import PackedMask, Pattern

_PLAIN = (Tensor, nn.Parameter)  # most are: asked many times in a step


def _is_a(thing: object, module: str, kind: str) -> bool:
    """``isinstance`` without importing: where nobody has imported the class, nothing is one."""
    imported = getattr(sys.modules.get(module), kind, None)
    return imported is not None and isinstance(thing, imported)


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return type(tensor) not in _PLAIN and _is_a(tensor, "torch.distributed.tensor", "DTensor")


def piece(tensor: Tensor) -> Tensor:
    """The piece that is here, sharing the tensor's memory; an ordinary tensor is its own piece."""
    tensor = tensor.detach()
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def version(param: Tensor) -> tuple[int, ...]:
    """Changes whenever autograd sees somebody write to ``param`` or to its piece."""
    return (param._version, piece(param)._version) if is_sharded(param) else (param._version,)


def whole(local: Tensor, like: Any) -> Tensor:
    """The tensor that the processes' pieces make up, on every one of them, where ``like`` is sharded as it is.

    A sharded one arrives on the CPU: a GPU need not hold every parameter at once. All processes must call this.
    """
    if not is_sharded(like):
        return local
    from torch.distributed.tensor import DTensor

    parts = DTensor.from_local(local, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return parts.full_tensor().cpu()


def piece_of(tensor: Tensor, like: Any) -> Tensor:
    """The piece that belongs here (a copy) of a whole tensor, sharded as ``like`` is. Nothing is communicated."""
    if not is_sharded(like):
        return tensor.clone()
    from torch.distributed.tensor import distribute_tensor

    here = tensor.to(piece(like).device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None).to_local().clone()


def sharded_alike(grad: Any, param: Any) -> Any:
    """``grad`` sharded as ``param`` is. A replicated weight's may be partial sums: the term would be added to each.

    All processes must call this.
    """
    if not is_sharded(grad) or grad.placements == param.placements:
        return grad
    return grad.redistribute(placements=param.placements)


def whole_mask(mask: PackedMask, like: Any) -> PackedMask:
    """`whole` of a mask."""
    return PackedMask.pack(whole(mask.unpack().byte(), like).bool()) if is_sharded(like) else mask


def mask_piece_of(mask: PackedMask, like: Any) -> PackedMask:
    """`piece_of` a mask."""
    return PackedMask.pack(piece_of(mask.unpack(), like)) if is_sharded(like) else mask.clone()


def total(counts: Tensor, like: Any) -> Tensor:
    """The sum of all pieces' ``counts``, once for each piece however often it is replicated.

    All processes must call this.
    """
    if not is_sharded(like):
        return counts
    from torch.distributed.tensor import DTensor, Partial, Replicate

    placements = [Replicate() if _dim(p) is None else Partial() for p in like.placements]
    return DTensor.from_local(counts.to(piece(like).device), like.device_mesh, placements).full_tensor()


def is_first(like: Any) -> bool:
    """Whether this process holds the first piece: what must be counted once is counted here."""
    if not is_sharded(like):
        return True
    here = like.device_mesh.get_coordinate()
    return all(at == 0 for at, placement in zip(here, like.placements) if _dim(placement) is not None)


def uncut(name: str, param: Any, pattern: Pattern, dim: int) -> None:
    """Raise ValueError if any process's piece of ``param`` would cut a group of the pattern."""
    if not is_sharded(param):
        return
    if pattern.layerwise:
        raise ValueError(
            f"{name} {list(param.shape)} is sharded, and the budget of {pattern} is the whole layer's. Train it under "
            "DDP, or by an N:M pattern (2:4V16 shares an index among outputs too), or leave it dense "
            f"(overrides={{{name!r}: None}})"
        )
    for shape in _piece_shapes(param):
        if reason := pattern.why_not(shape, dim=dim):
            raise ValueError(
                f"{name} {list(param.shape)} is sharded into pieces of {list(shape)}, which cut its {pattern} groups: "
                f"{reason}. Shard it along another dimension or over another number of processes, or "
                f"leave it dense (overrides={{{name!r}: None}})"
            )


def _dim(placement: Any) -> int | None:
    return getattr(placement, "dim", None)


def _piece_shapes(param: Any) -> list[tuple[int, ...]]:
    """The shapes of all processes' pieces, each once."""
    sizes = [{size} for size in param.shape]
    for processes, placement in zip(param.device_mesh.shape, param.placements):
        dim = _dim(placement)
        if dim is not None:
            # as torch.chunk cuts: all pieces of one size but the last ones
            sizes[dim] = {
                part for size in sizes[dim] for part in (-(-size // processes), size % -(-size // processes)) if part
            }
    return list(product(*sizes))


def reshard(model: nn.Module) -> None:
    """Put FSDP2's parameters back into pieces: a forward pass without a backward leaves some gathered.

    Raises:
        ValueError: FSDP1 has flattened the parameters; no pattern can be seen in them.
    """
    for module in model.modules():
        if _is_a(module, "torch.distributed.fsdp", "FullyShardedDataParallel"):
            raise ValueError(
                "FSDP1 (FullyShardedDataParallel) flattens parameters into one vector, which cuts N:M groups anywhere. "
                "Use FSDP2: Lightning's ModelParallelStrategy, or torch.distributed.fsdp.fully_shard"
            )
        if _is_a(module, "torch.distributed.fsdp", "FSDPModule"):
            module.reshard()  # type: ignore[operator]


def anywhere(flag: bool, like: Any) -> bool:
    """Whether ``flag`` is up in any of the processes that share ``like``. All of them must call this."""
    return flag if not is_sharded(like) else bool(total(torch.tensor(int(flag)), like))
