"""What `lightning-nm bench` times: the sparse weights of a checkpoint, or masked random ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_nm.cli.report import selected_weights
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.packed_nm import LARGEST_M
from lightning_nm.patterns import NM, Block1xN, Pattern
from lightning_nm.patterns.base import other_dim
from lightning_nm.sparse import recognise
from lightning_nm.training.selection import plain_name

Left = tuple[str, tuple[int, ...], str]
"""Name and shape of a weight that is not timed, and why."""
_SPATIAL_DIMS = 3


class Product(NamedTuple):
    """Operands."""

    x: Tensor
    bias: Tensor
    convolution: Convolution | None


@dataclass(frozen=True)
class Work:
    """A sparse weight, timed once for all that are alike."""

    layers: list[str]
    weight: Tensor
    pattern: NM | Block1xN
    dim: int

    def products(self, batches: Sequence[int], size: Sequence[int], stride: int, last: bool) -> Iterator[Product]:
        """Random operands for each batch.

        Args:
            size: of the images that a convolution sees; one number is that of every dimension.
            stride: of a convolution. Its padding is half of its kernel.
            last: whether channels are last in memory.

        Raises:
            ValueError: a size of other dimensions than the convolution has.
        """
        kernel = tuple(self.weight.shape[2:])
        sizes = tuple(size) * len(kernel) if len(size) == 1 else tuple(size)
        if kernel and len(sizes) != len(kernel):
            raise ValueError(f"{self.layers[0]} {list(self.weight.shape)} sees images of {len(kernel)} sizes: --size")
        like = {"dtype": self.weight.dtype, "device": self.weight.device}
        random = torch.Generator(self.weight.device).manual_seed(0)
        bias = torch.randn(self.weight.shape[other_dim(self.dim, self.weight.dim())], generator=random, **like)  # type: ignore[call-overload]
        for batch in batches:
            shape = (batch, self.weight.shape[self.dim], *(sizes if kernel else ()))
            x = torch.randn(shape, generator=random, **like)  # type: ignore[call-overload]
            if not kernel:
                yield Product(x, bias, None)
                continue
            ones = (1,) * len(kernel)
            padding = tuple(k // 2 for k in kernel)
            convolution = Convolution(kernel, (stride,) * len(kernel), padding, ones, groups=1)
            yield Product(channels_last(x) if last else x, bias, convolution)


def channels_last(tensor: Tensor) -> Tensor:
    """Images or filters with their channels last in memory, where torch has such a format for them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()]) if tensor.dim() in formats else tensor


def of_checkpoint(checkpoint: Mapping[str, Any], ignore: Sequence[str] = ()) -> tuple[list[Work], list[Left]]:
    """Every weight of a checkpoint that is sparse, by its zeros, as `lightning_nm.sparse.accelerate` sees it.

    The callback's or the conversion's record says along which dimension a weight sums, where there is one.

    Returns:
        (those to time, equal ones once; the other matrices and kernels, and why they are left).

    Raises:
        ValueError: no weight is sparse.
    """
    recorded = selected_weights(checkpoint) or {}
    works: dict[tuple[object, ...], Work] = {}
    left: list[Left] = []
    for key, weight in checkpoint["state_dict"].items():
        if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.dim() < 2:
            continue
        name = plain_name(key)
        dim = recorded.get(name, {}).get("dim", 1)
        pattern = _pattern_of(name, weight, dim, ignore)
        if isinstance(pattern, str):
            left.append((name, tuple(weight.shape), pattern))
            continue
        alike = (weight.shape, str(pattern), dim)
        works.setdefault(alike, Work([], weight, pattern, dim)).layers.append(name)
    return _some(list(works.values()), left, "no weight of the checkpoint is sparse")


def _pattern_of(name: str, weight: Tensor, dim: int, ignore: Sequence[str]) -> NM | Block1xN | str:
    if any(fnmatchcase(name, glob) for glob in ignore):
        return "ignored"
    if weight.dim() > 2 + _SPATIAL_DIMS:
        return f"no layer multiplies by {weight.dim()} dimensions"
    if dim == 0 and weight.dim() > 2:
        return "no kernel for transposed convolutions"
    if weight.shape[dim] == 1:
        return "every output sums over a single input channel"
    if not bool(torch.isfinite(weight).all()):
        return "it holds NaN or infinity"
    return recognise(weight, dim=dim)


def of_shapes(
    shapes: Sequence[Sequence[int]], patterns: Sequence[Pattern], *, as_told: bool = False
) -> tuple[list[Work], list[Left]]:
    """Random weights of every shape, masked by every pattern.

    Args:
        as_told: take the pattern that the zeros tell, as for the weights of a model: 1x32@0.75 for 1:4V64.

    Raises:
        ValueError: no pattern fits any shape, or none can be packed.
    """
    works, left = [], []
    for shape in shapes:
        dense = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        for pattern in patterns:
            reason = _why_not(shape, pattern)
            if reason is None:
                assert isinstance(pattern, (NM, Block1xN))
                weight = torch.where(pattern.mask(dense), dense, 0.0)
                seen = recognise(weight) if as_told else pattern
                if isinstance(seen, str):
                    reason = seen
                else:
                    works.append(Work(["random"], weight, seen, 1))
            if reason is not None:
                left.append((f"random {pattern}", tuple(shape), reason))
    return _some(works, left, "nothing to time")


def _why_not(shape: Sequence[int], pattern: Pattern) -> str | None:
    if not 2 <= len(shape) <= 2 + _SPATIAL_DIMS:
        return "a shape is OUT IN for linear layers, OUT IN and 1 to 3 kernel sizes for convolutions"
    if not isinstance(pattern, (NM, Block1xN)):
        return f"no backend packs {pattern} weights: name N:M or 1xN patterns"
    if isinstance(pattern, NM) and pattern.m > LARGEST_M:
        return f"M is at most {LARGEST_M}"
    return pattern.why_not(shape)


def _some(works: list[Work], left: list[Left], otherwise: str) -> tuple[list[Work], list[Left]]:
    if not works:
        reasons = "".join(f"\n  {name} {list(shape)}: {reason}" for name, shape, reason in left)
        raise ValueError(f"{otherwise}{reasons or ': it holds no matrix or kernel'}")
    return works, left
