"""N:M sparsity: N kept of every M consecutive weights along the reduction dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns.base import Pattern


@dataclass(frozen=True)
class NM(Pattern):
    """Keep the N largest magnitudes of every M consecutive weights (Zhou et al., ICLR 2021, eq. 1).

    N counts the *kept* weights, as NVIDIA and SR-STE do; Hubara et al. (NeurIPS 2021) and Core ML
    count the zeros. Groups run along the dimension that the GEMM sums over, at a fixed output and
    kernel tap, and cross none of them.

    ``transposable=True`` (Hubara et al., arXiv 2102.08124): N of every row *and* of every column of
    each M x M tile of (outputs, inputs), so that the transposed weight, by which the backward pass
    multiplies, is N:M too. Of all such masks the one of largest magnitude is taken, exactly for M up
    to 16, by swaps above.

    >>> import torch
    >>> NM(2, 4).mask(torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.0, 5.0, 0.0, 6.0]]))
    tensor([[ True,  True, False, False, False,  True, False,  True]])
    >>> NM(1, 2, transposable=True).mask(torch.tensor([[3.0, 2.0], [2.0, 0.0]]))
    tensor([[False,  True],
            [ True, False]])

    Raises:
        ValueError: unless n and m are integers and ``0 < n <= m``.
    """

    n: int
    m: int
    transposable: bool = False

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int:
            raise ValueError(f"N and M are whole numbers, got {self.n!r}:{self.m!r}")
        if not 0 < self.n <= self.m:
            raise ValueError(f"N:M keeps N of every M weights, so 0 < N <= M; got {self.n}:{self.m}")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}{'T' if self.transposable else ''}"

    @property
    def density(self) -> float:
        return self.n / self.m

    @property
    def refresh(self) -> int:
        return 40 if self.transposable else 1

    def why_not(
        self, shape: Sequence[int], *, dim: int = 1, span: int | None = None, rows: int | None = None
    ) -> str | None:
        size = shape[dim] if span is None else span
        if size % self.m:
            return f"the {size} inputs that one output sums over are not a multiple of {self.m}"
        if not self.transposable:
            return None
        outputs = shape[_other(dim, len(shape))] if rows is None else rows
        if outputs % self.m:
            return f"the {outputs} outputs of one GEMM are not a multiple of {self.m}, as transposable tiles must be"
        return None

    def mask(self, weight: Tensor, *, dim: int = 1) -> Tensor:
        self.check(weight, dim)
        self.check_finite(weight)
        return self._mask(weight, dim)

    def _mask(self, weight: Tensor, dim: int) -> Tensor:
        if self.transposable:
            return kernels.transposable_mask(weight, self.n, self.m, dim, _other(dim, weight.dim()))
        return kernels.nm_mask(weight, self.n, self.m, dim)

    def violations(self, weight: Tensor, *, dim: int = 1) -> int:
        self.check(weight, dim)
        along = [dim % weight.dim(), *([_other(dim, weight.dim())] if self.transposable else [])]
        return sum(int((self.groups(weight != 0, dim=d).sum(d + 1) > self.n).sum()) for d in along)

    def split_(
        self, weight: Tensor, hidden: Tensor | None, bits: Tensor, *, dim: int = 1
    ) -> tuple[int | Tensor, int | Tensor]:
        self.check(weight, dim)
        if self.transposable:
            return kernels.split_(weight, hidden, bits, self._mask(weight, dim))
        return kernels.nm_split_(weight, hidden, bits, self.n, self.m, dim)

    def groups(self, tensor: Tensor, *, dim: int = 1) -> Tensor:
        """``tensor`` with dimension ``dim`` replaced by two, ``[groups, M]``; the last is ``dim + 1``."""
        grouped: Tensor = tensor.unflatten(dim, (-1, self.m))  # type: ignore[no-untyped-call]
        return grouped

    def threshold(self, weight: Tensor, mask: Tensor, *, dim: int = 1) -> Tensor:
        """Largest magnitude that ``mask`` removes from each group, broadcast to the weight's shape.

        This is the (M-N)-th smallest |w| of the group, 0 where nothing is removed (N = M).
        """
        removed = self.groups(torch.where(mask, 0.0, weight.abs()), dim=dim)
        along = dim % weight.dim() + 1
        return removed.amax(along, keepdim=True).expand_as(removed).reshape(weight.shape)


def _other(dim: int, dims: int) -> int:
    """The dimension of the outputs, where ``dim`` is that of the inputs."""
    return 0 if dim % dims else 1
