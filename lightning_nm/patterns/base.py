"""What a weight may look like: the interface that every sparsity pattern keeps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_nm import kernels


class Pattern(ABC):
    """A rule for which entries of a weight may be kept. Immutable, comparable, hashable.

    ``str(pattern)`` is its written form, which `lightning_nm.patterns.parse` reads back.

    A pattern sees a weight together with ``dim``, its reduction dimension: the one that the GEMM
    sums over (1 for Linear and convolutions, 0 for transposed convolutions).
    """

    @abstractmethod
    def __str__(self) -> str: ...

    @property
    @abstractmethod
    def density(self) -> float:
        """Fraction of entries that the pattern keeps, up to rounding to whole units; the most that it may keep."""

    @property
    def layerwise(self) -> bool:
        """Whether the budget is the whole weight's, so that no piece of it can be masked alone."""
        return False

    @property
    def refresh(self) -> int:
        """Optimizer steps between two masks, where the schedule does not say."""
        return 1

    @abstractmethod
    def why_not(
        self, shape: Sequence[int], *, dim: int = 1, span: int | None = None, rows: int | None = None
    ) -> str | None:
        """Why a weight of this shape cannot have the pattern, or None if it can.

        Args:
            shape: the weight's shape.
            dim: its reduction dimension.
            span: entries along ``dim`` that one output sums over; groups must not cross from one
                span into the next. Smaller than ``shape[dim]`` only in a grouped transposed
                convolution.
            rows: entries along the other dimension (0, or 1 if ``dim`` is 0) that belong to one GEMM;
                tiles must not cross from one GEMM into the next. None: all.
        """

    def mask(self, weight: Tensor, *, dim: int = 1) -> Tensor:
        """The mask of a dense weight: bool, shaped like it, True = kept.

        Ties are won by the lowest index, on every device and rank.

        Raises:
            ValueError: the shape does not fit the pattern, or the weight holds NaN or infinity.
        """
        self.check(weight, dim)
        self.check_finite(weight)
        return self._mask(weight.detach(), dim)

    @abstractmethod
    def _mask(self, weight: Tensor, dim: int) -> Tensor:
        """The mask of a weight that fits. Of one that holds NaN or infinity, any mask."""

    @abstractmethod
    def violations(self, weight: Tensor, *, dim: int = 1) -> int:
        """Number of groups of ``weight`` that hold more non-zeros than the pattern allows.

        Where the whole weight is one group, the number of units too many.

        Raises:
            ValueError: the shape does not fit the pattern.
        """

    def split_(
        self, weight: Tensor, hidden: Tensor | None, bits: Tensor, *, dim: int = 1, counts: Tensor | None = None
    ) -> tuple[int | Tensor, int | Tensor]:
        """Split a dense weight in place by its own mask: see `lightning_nm.kernels.nm_split_`.

        Raises:
            ValueError: the shape does not fit the pattern. NaN and infinity are counted, not raised.
        """
        self.check(weight, dim)
        return kernels.split_(weight, hidden, bits, self._mask(weight.detach(), dim), counts)

    @abstractmethod
    def log_diversity(self, shape: Sequence[int], *, dim: int = 1, exact: bool = True) -> float:
        """Natural logarithm of the number of masks that the pattern allows for a weight of this shape.

        "Mask diversity" of Hubara et al. (arXiv 2102.08124).

        Args:
            shape: the weight's shape.
            dim: its reduction dimension; only filters' masks are other ones along another.
            exact: False: by the paper's formula, which is no exact count, where that is infeasible.

        Raises:
            ValueError: the shape fits the pattern along no dimension, or no exact count is feasible.
        """

    def check(self, weight: Tensor, dim: int) -> None:
        """Raise ValueError unless ``weight`` is a float tensor whose shape fits the pattern."""
        shape = tuple(weight.shape)
        if not weight.is_floating_point():
            raise ValueError(f"a {self} mask needs a floating-point weight, got {weight.dtype} of shape {shape}")
        if not -weight.dim() <= dim < weight.dim():
            raise ValueError(f"{self} does not fit a weight of shape {shape}: it has no dimension {dim}")
        if reason := self.why_not(shape, dim=dim):
            raise ValueError(f"{self} does not fit a weight of shape {shape}: {reason}")

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise ValueError unless a weight of this shape fits the pattern along dimension 1 or 0."""
        enough = len(shape) > 1
        reasons = [self.why_not(shape, dim=d) if enough else "it has fewer than two dimensions" for d in (1, 0)]
        if all(reasons):
            raise ValueError(f"{self} does not fit a weight of shape {tuple(shape)}: {reasons[0]}")

    def check_finite(self, weight: Tensor) -> None:
        """Raise ValueError if ``weight`` holds NaN or infinity. Waits for a GPU."""
        if bad := int((~torch.isfinite(weight)).sum()):
            shape = tuple(weight.shape)
            raise ValueError(f"a weight of shape {shape} holds {bad} NaN or infinite entries; it has no {self} mask")


def other_dim(dim: int, dims: int) -> int:
    """The dimension of the outputs, where ``dim`` is that of the inputs."""
    return 0 if dim % dims else 1
