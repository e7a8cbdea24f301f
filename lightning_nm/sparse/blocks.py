"""1xN weights, packed: the blocks that stay, row of blocks by row of blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_nm.kernels.convolution import Convolution
from lightning_nm.kernels.packed_blocks import rows_of
from lightning_nm.patterns import Block1xN
from lightning_nm.patterns.base import other_dim
from lightning_nm.sparse.ops import ops


@dataclass(frozen=True, eq=False)
class PackedBlocks:
    """Of a weight seen as ``[O, I, T]`` (T kernel taps) the blocks of N outputs x one input x T taps that are not zero.

    Blocks are in the order of their outputs, then of their inputs: the N weights at one tap, which share an input, lie
    side by side, as a kernel multiplies them.
    """

    values: Tensor
    """``[blocks, T, N]``, of the weight's dtype."""
    inputs: Tensor
    """``[blocks]``: the input of each block; int16, or int32 for more than 32,767 inputs."""
    starts: Tensor
    """``[O / N + 1]``, int32: the blocks of row r are those from ``starts[r]`` to ``starts[r + 1]``."""
    shape: torch.Size
    """Of the weight."""
    dim: int
    """Its reduction dimension."""

    def __post_init__(self) -> None:
        self._require(self.values.dim() == 3, f"values are [blocks, T, N], not {list(self.values.shape)}")
        blocks, taps, n = self.values.shape
        self._require(
            len(self.shape) > 1 and self.dim in (0, 1), "a weight has two dimensions or more, and sums over one"
        )
        outputs, inputs = self.shape[other_dim(self.dim, len(self.shape))], self.shape[self.dim]
        self._require(
            self.inputs.dtype in (torch.int16, torch.int32), f"inputs are int16 or int32, not {self.inputs.dtype}"
        )
        self._require(self.starts.dtype == torch.int32, f"starts are int32, not {self.starts.dtype}")
        fits = n > 0 and outputs % n == 0 and taps * outputs * inputs == self.shape.numel()
        self._require(fits, f"blocks of {n} outputs and {taps} taps do not make up {list(self.shape)}")
        self._require(self.inputs.shape == (blocks,), f"{blocks} blocks have {list(self.inputs.shape)} inputs")
        self._require(
            self.starts.shape == (outputs // n + 1,), f"{outputs // n} rows have {list(self.starts.shape)} starts"
        )
        starts = self.starts.tolist()
        rising = starts == sorted(starts) and starts[0] == 0 and starts[-1] == blocks
        self._require(rising, f"starts must rise from 0 to the {blocks} blocks")
        within = blocks == 0 or (int(self.inputs.min()) >= 0 and int(self.inputs.max()) < inputs)
        self._require(within, f"inputs must lie between 0 and {inputs - 1}")
        places = rows_of(self.starts) * inputs + self.inputs
        self._require(bool((places.diff() > 0).all()), "the blocks of a row must be in the order of their inputs")

    def __reduce__(self) -> tuple[type[PackedBlocks], tuple[object, ...]]:
        # through the constructor, which checks what comes from a file
        return PackedBlocks, (self.values, self.inputs, self.starts, self.shape, self.dim)

    @staticmethod
    def _require(holds: bool, reason: str) -> None:
        if not holds:
            raise ValueError(f"corrupt packed blocks: {reason}")

    @classmethod
    def pack(cls, weight: Tensor, pattern: Block1xN, *, dim: int = 1) -> PackedBlocks:
        """Pack a weight that obeys ``pattern``.

        Raises:
            ValueError: it does not fit the pattern, holds more blocks than that allows, or nothing at all.
        """
        if not weight.numel():
            raise ValueError(f"a weight of shape {tuple(weight.shape)} holds nothing to pack")
        if excess := pattern.violations(weight, dim=dim):
            raise ValueError(
                f"a weight of shape {tuple(weight.shape)} holds {excess} more blocks than {pattern} allows"
            )
        weight = weight.detach()
        dim = dim % weight.dim()
        outputs = other_dim(dim, weight.dim())
        rows = weight.movedim((outputs, dim), (0, 1)).reshape(weight.shape[outputs], weight.shape[dim], -1)  # [O, I, T]
        blocks = rows.unflatten(0, (-1, pattern.n)).permute(0, 2, 3, 1)  # type: ignore[no-untyped-call]  # [O / N, I, T, N]
        held = (blocks != 0).flatten(2).any(2)
        starts = torch.zeros(len(held) + 1, dtype=torch.int32, device=weight.device)
        starts[1:] = held.sum(1).cumsum(0)
        narrow = torch.int16 if held.shape[1] <= torch.iinfo(torch.int16).max else torch.int32
        inputs = held.nonzero()[:, 1].to(narrow)
        return cls(blocks[held].contiguous(), inputs, starts, weight.shape, dim)

    def unpack(self) -> Tensor:
        """The weight, bit for bit; zeros of blocks that are gone are +0 (``weight * mask`` makes some -0)."""
        _, taps, n = self.values.shape
        outputs = other_dim(self.dim, len(self.shape))
        blocks = self.values.new_zeros(len(self.starts) - 1, self.shape[self.dim], taps, n)
        blocks[rows_of(self.starts), self.inputs.long()] = self.values
        rows = blocks.permute(0, 3, 1, 2).flatten(0, 1)  # [O, I, T]
        sizes = [size for d, size in enumerate(self.shape) if d not in (outputs, self.dim)]
        return rows.reshape(len(rows), rows.shape[1], *sizes).movedim((0, 1), (outputs, self.dim)).contiguous()

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.inputs.nbytes + self.starts.nbytes

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight^T + bias`` of x ``[..., I]``, of a weight without taps, by `lightning_nm.sparse.ops`.

        Raises:
            ValueError: x or bias of another size, or a weight with kernel taps.
        """
        if self.values.shape[1] != 1 or x.shape[-1] != self.shape[self.dim]:
            raise ValueError(f"x of shape {tuple(x.shape)} does not fit a linear weight of shape {tuple(self.shape)}")
        out: Tensor = ops.block_linear(x, self.values[:, 0], self.inputs, self.starts, bias)
        return out

    def convolution(self, x: Tensor, bias: Tensor | None, convolution: Convolution) -> Tensor:
        """Of x ``[B, C, *sizes]`` with these filters, by `lightning_nm.sparse.ops`.

        Raises:
            ValueError: x, bias or convolution of other sizes.
        """
        out: Tensor = ops.block_conv(x, self.values, self.inputs, self.starts, bias, *convolution)
        return out

    def to_bsr(self) -> Tensor:
        """As torch's block-sparse matrix ``[O, I * T]`` with blocks (N, 1): the matrix form of the weight."""
        blocks, taps, n = self.values.shape
        columns = self.inputs.long()[:, None] * taps + torch.arange(taps, device=self.inputs.device)
        return torch.sparse_bsr_tensor(
            self.starts.long() * taps,
            columns.flatten(),
            self.values.reshape(blocks * taps, n, 1),
            size=((len(self.starts) - 1) * n, self.shape[self.dim] * taps),
        )

    @classmethod
    def from_bsr(cls, matrix: Tensor, shape: torch.Size, *, dim: int = 1) -> PackedBlocks:
        """`to_bsr` backwards, for a weight of ``shape``.

        Raises:
            ValueError: not a BSR matrix of blocks (N, 1) that hold all taps of their inputs, or of another size.
        """
        if matrix.layout != torch.sparse_bsr or matrix.values().shape[2] != 1:
            raise ValueError(f"1xN weights are BSR matrices with blocks (N, 1), got {matrix.layout}")
        dim = dim % len(shape)
        taps = shape.numel() // (shape[dim] * shape[other_dim(dim, len(shape))])
        size = (shape[other_dim(dim, len(shape))], shape[dim] * taps)
        if matrix.shape != size:
            raise ValueError(f"a matrix of shape {tuple(matrix.shape)} is no weight of shape {tuple(shape)}: {size}")
        columns, starts = matrix.col_indices(), matrix.crow_indices()
        # all taps of an input, in order, in one row of blocks
        first = columns[::taps].repeat_interleave(taps)[: len(columns)]
        offset = torch.arange(len(columns), device=columns.device) % taps
        if len(columns) % taps or (first % taps).any() or (columns != first + offset).any() or (starts % taps).any():
            raise ValueError(f"its blocks do not hold all {taps} taps of their inputs")
        narrow = torch.int16 if shape[dim] <= torch.iinfo(torch.int16).max else torch.int32
        values = matrix.values().reshape(-1, taps, matrix.values().shape[1])
        return cls(values, (columns[::taps] // taps).to(narrow), (starts // taps).int(), torch.Size(shape), dim)
