"""N:M weights, packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.kernels import packed_nm
from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.packed_nm import LANES, LARGEST_M, Layout
from lightning_nm.patterns import NM
from lightning_nm.patterns.base import other_dim
from lightning_nm.sparse.ops import ops


@dataclass(frozen=True, eq=False)
class PackedNM:
    """Of a weight, seen as the matrix ``[O, T * I]`` (T kernel taps, one after the other), N of every M inputs.

    `lightning_nm.kernels.packed_nm` describes the tensors.
    """

    values: Tensor
    positions: Tensor
    n: int
    m: int
    shape: torch.Size
    """Of the weight."""
    dim: int
    """Its reduction dimension."""

    def __post_init__(self) -> None:
        _require(len(self.shape) > 1 and self.dim in (0, 1), "a weight has two dimensions or more, and sums over one")
        _require(0 < self.n <= self.m <= LARGEST_M, f"{self.n}:{self.m} is no pattern that can be packed")
        inputs = self.shape[self.dim]
        _require(inputs % self.m == 0, f"{inputs} inputs are not a multiple of {self.m}")
        layout = self.layout
        groups = -(-self.outputs // LANES)
        for name, held, size in (("values", self.values, layout.weights), ("positions", self.positions, layout.words)):
            expected = (groups, layout.chunks, size, LANES)
            _require(held.shape == expected, f"{name} have shape {list(held.shape)}, not {list(expected)}")
        _require(self.positions.dtype == torch.int32, f"positions are int32, not {self.positions.dtype}")
        if layout.window < 2 ** (32 // layout.per_word):  # else every number is a position
            at = packed_nm.positions_of(self.positions, layout)
            _require(at.numel() == 0 or int(at.max()) < layout.window, f"positions must be less than {layout.window}")

    def __reduce__(self) -> tuple[type[PackedNM], tuple[object, ...]]:
        # through the constructor, which checks what comes from a file
        return PackedNM, (self.values, self.positions, self.n, self.m, self.shape, self.dim)

    @property
    def outputs(self) -> int:
        return self.shape[other_dim(self.dim, len(self.shape))]

    @property
    def layout(self) -> Layout:
        inputs = self.shape[self.dim]
        taps = self.shape.numel() // max(1, self.outputs * inputs)
        return Layout.of(self.n, self.m, taps * inputs, taps)

    @classmethod
    def pack(cls, weight: Tensor, pattern: NM, *, dim: int = 1) -> PackedNM:
        """Pack a weight that obeys ``pattern``: row-wise, transposable or vector-wise N:M.

        Raises:
            ValueError: it does not fit the pattern or breaks it, holds nothing at all, or M is above 32.
        """
        if not weight.numel():
            raise ValueError(f"a weight of shape {tuple(weight.shape)} holds nothing to pack")
        if pattern.m > LARGEST_M:
            raise ValueError(f"{pattern} weights cannot be packed: M is at most {LARGEST_M}")
        pattern.check(weight, dim)
        dim = dim % weight.dim()
        rows = _matrix(weight.detach(), dim)
        layout = Layout.of(pattern.n, pattern.m, rows.shape[1], rows.shape[1] // weight.shape[dim])
        packed = kernels.nm_pack(rows, pattern.n, layout)
        if isinstance(packed, int):
            row, group = divmod(packed, rows.shape[1] // pattern.m)
            held = int(rows[row].view(-1, pattern.m)[group].count_nonzero())
            raise ValueError(
                f"a weight of shape {tuple(weight.shape)} is not {pattern}: group {group} of output {row} holds "
                f"{held} weights"
            )
        return cls(*packed, pattern.n, pattern.m, weight.shape, dim)

    def unpack(self) -> Tensor:
        """The weight, bit for bit, but for -0 beyond the N of a group."""
        rows = packed_nm.unpack(self.values, self.positions, self.layout, self.outputs)
        outputs = other_dim(self.dim, len(self.shape))
        sizes = [size for d, size in enumerate(self.shape) if d not in (outputs, self.dim)]
        taps = rows.view(self.outputs, *sizes, self.shape[self.dim]).movedim(-1, 1)
        return taps.movedim((0, 1), (outputs, self.dim)).contiguous()

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.positions.nbytes

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight^T + bias`` of x ``[..., I]``, of a weight without taps, by `lightning_nm.sparse.ops`.

        Raises:
            ValueError: x or bias of another size, or a weight with kernel taps.
        """
        if self.shape.numel() != self.outputs * self.shape[self.dim]:
            raise ValueError(f"x of shape {tuple(x.shape)} does not fit a linear weight of shape {tuple(self.shape)}")
        out: Tensor = ops.nm_linear(x, self.values, self.positions, bias, self.n, self.m, self.outputs)
        return out

    def convolution(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        """Of x ``[B, C, *sizes]`` with these filters, by `lightning_nm.sparse.ops`.

        Raises:
            ValueError: x, bias or convolution of other sizes.
        """
        packed = (self.values, self.positions, bias, self.n, self.m, self.outputs)
        out: Tensor = ops.nm_conv(x, *packed, *convolution)
        return out


def _matrix(weight: Tensor, dim: int) -> Tensor:
    """``[O, T * I]``."""
    outputs = other_dim(dim, weight.dim())
    return weight.movedim((outputs, dim), (0, 1)).movedim(1, -1).reshape(weight.shape[outputs], -1)


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(f"corrupt packed N:M weight: {reason}")
