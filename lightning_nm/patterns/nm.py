"""N:M sparsity: N kept of every M consecutive weights along the reduction dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, log, prod

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.patterns.base import Pattern, other_dim
from lightning_nm.patterns.counting import log_tile_masks


@dataclass(frozen=True)
class NM(Pattern):
    """Keep the N largest magnitudes of every M consecutive weights (Zhou et al., ICLR 2021, eq. 1).

    N counts the *kept* weights, as NVIDIA and SR-STE do; Hubara et al. (NeurIPS 2021) and Core ML
    count the zeros. Groups run along the dimension that the GEMM sums over, at a fixed output and
    kernel tap, and cross none of them.

    ``transposable=True`` (Hubara et al., arXiv 2102.08124): N of every row *and* of every column of
    each M x M tile of (outputs, inputs), so that the transposed weight, by which the backward pass
    multiplies, is N:M too. Of all such masks the one of largest magnitude is taken.

    Args:
        n: weights kept of every ``m``.
        m: size of a group; sides of a tile.
        transposable: whether columns obey too.
        at_most: transposable tiles keep N of every row and column *at most*, which can be more magnitude.
        solver: how transposable masks are found. Each gives the same mask of a tile in any batch, on any device that
            has float64; magnitudes are compared to 2^-40 of the tile's largest, for large M down to 2^-26. None:
            ``"exact"`` for M up to 16, ``"entropic"`` above.

            - ``"exact"``: the best mask, by a table (M up to 4) or by cancelling positive cycles;
            - ``"entropic"``: regularised transport (TSENOR), then swaps; of Gaussian tiles it keeps .9997 of the best
              at 16:32 and .998 at 1:32;
            - ``"fast"``: greedy, then swaps; .9985 at 4:8, .985 at 1:32;
            - ``"flow"``: the best mask, by OR-tools' min-cost flow, as the paper has it; needs OR-tools;
            - ``"two_approximation"``: the paper's fast one, which prunes too much; for ``at_most`` only.
        vector: V consecutive outputs share one index: of every ``m`` inputs those ``n`` are kept whose V weights have
            the largest l1 norm (vector-wise N:M, a 1xN block pattern of balanced columns).

    >>> import torch
    >>> NM(2, 4).mask(torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.0, 5.0, 0.0, 6.0]]))
    tensor([[ True,  True, False, False, False,  True, False,  True]])
    >>> NM(1, 2, transposable=True).mask(torch.tensor([[3.0, 2.0], [2.0, 0.0]]))
    tensor([[False,  True],
            [ True, False]])

    Raises:
        ValueError: unless n and m are integers and ``0 < n <= m``, or for options that do not go together.
    """

    n: int
    m: int
    transposable: bool = False
    at_most: bool = False
    solver: str | None = None
    vector: int = 1

    def __post_init__(self) -> None:
        if type(self.n) is not int or type(self.m) is not int:
            raise ValueError(f"N and M are whole numbers, got {self.n!r}:{self.m!r}")
        if not 0 < self.n <= self.m:
            raise ValueError(f"N:M keeps N of every M weights, so 0 < N <= M; got {self.n}:{self.m}")
        if not self.transposable and (self.at_most or self.solver):
            raise ValueError(f"at_most and solver are options of transposable masks; write {self.n}:{self.m}T for them")
        if self.solver not in (None, *kernels.SOLVERS):
            raise ValueError(f"there is no solver {self.solver!r}; there are {', '.join(kernels.SOLVERS)}")
        if type(self.vector) is not int or self.vector < 1:
            raise ValueError(f"vector is a whole number of outputs, at least 1; got {self.vector!r}")
        if self.transposable and self.vector > 1:
            raise ValueError("vector-wise masks are not transposable; choose one of both")
        if self.solver == "two_approximation" and not self.at_most:
            raise ValueError("the solver 'two_approximation' leaves rows with fewer than N: it needs at_most=True")

    def __str__(self) -> str:
        options = [*(["at_most"] if self.at_most else []), *([self.solver] if self.solver else [])]
        kind = "T" if self.transposable else f"V{self.vector}" if self.vector > 1 else ""
        return ",".join([f"{self.n}:{self.m}{kind}", *options])

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
        if self._row_wise:
            return None
        outputs = shape[other_dim(dim, len(shape))] if rows is None else rows
        if self.transposable and outputs % self.m:
            return f"the {outputs} outputs of one GEMM are not a multiple of {self.m}, as transposable tiles must be"
        if outputs % self.vector:
            return f"the {outputs} outputs of one GEMM are not a multiple of {self.vector}, which share an index"
        return None

    def _mask(self, weight: Tensor, dim: int) -> Tensor:
        if self._row_wise:
            return kernels.nm_mask(weight, self.n, self.m, dim)
        outputs = other_dim(dim, weight.dim())
        if self.transposable:
            return kernels.transposable_mask(weight, self.n, self.m, dim, outputs, self.solver, self.at_most)
        norms = kernels.unit_norms(weight, {outputs: self.vector})
        return kernels.nm_mask(norms, self.n, self.m, dim).repeat_interleave(self.vector, outputs)

    def violations(self, weight: Tensor, *, dim: int = 1) -> int:
        self.check(weight, dim)
        outputs = other_dim(dim, weight.dim())
        held = kernels.held_units(weight, {outputs: self.vector})
        along = [dim % weight.dim(), *([outputs] if self.transposable else [])]
        return sum(int((self.groups(held, dim=d).sum(d + 1) > self.n).sum()) for d in along)

    def split_(
        self, weight: Tensor, hidden: Tensor | None, bits: Tensor, *, dim: int = 1, counts: Tensor | None = None
    ) -> tuple[int | Tensor, int | Tensor]:
        if not self._row_wise:
            return super().split_(weight, hidden, bits, dim=dim, counts=counts)
        self.check(weight, dim)
        return kernels.nm_split_(weight, hidden, bits, self.n, self.m, dim, counts)

    @property
    def _row_wise(self) -> bool:
        return not self.transposable and self.vector == 1

    def log_diversity(self, shape: Sequence[int], *, dim: int = 1, exact: bool = True) -> float:
        self.check_shape(shape)
        if not self.transposable:
            return prod(shape) // (self.m * self.vector) * log(comb(self.m, self.n))
        return prod(shape) // self.m**2 * log_tile_masks(self.n, self.m, at_most=self.at_most, exact=exact)

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
