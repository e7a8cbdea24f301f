"""The 1xN pattern: N consecutive outputs share one decision for each input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_nm.patterns.base import other_dim
from lightning_nm.patterns.layer_budget import LayerBudget


@dataclass(frozen=True)
class Block1xN(LayerBudget):
    """Blocks of N consecutive outputs x one input x all taps (Lin et al., TPAMI 2022, arXiv 2105.14713, eq. 3).

    Of a layer's blocks the ``sparsity`` share of smallest l1 norm goes. Written ``"1xN@sparsity"``.

    >>> import torch
    >>> Block1xN(2, sparsity=0.5).mask(torch.tensor([[4.0, 1.0], [0.0, 2.0]]))  # norms 4 and 3
    tensor([[ True, False],
            [ True, False]])

    Raises:
        ValueError: unless n is a positive integer and 0 <= sparsity < 1.
    """

    n: int
    sparsity: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.n) is not int or self.n < 1:
            raise ValueError(f"N of a 1xN pattern is a whole number of outputs, at least 1; got {self.n!r}")

    def __str__(self) -> str:
        return f"1x{self.n}@{self.sparsity}"

    def why_not(
        self, shape: Sequence[int], *, dim: int = 1, span: int | None = None, rows: int | None = None
    ) -> str | None:
        outputs = shape[other_dim(dim, len(shape))] if rows is None else rows
        return f"the {outputs} outputs of one GEMM are not a multiple of {self.n}" if outputs % self.n else None

    def _unit(self, shape: Sequence[int], dim: int) -> dict[int, int]:
        outputs = other_dim(dim, len(shape))
        taps = {d: size for d, size in enumerate(shape) if d not in (outputs, dim % len(shape))}
        return {outputs: self.n, **taps}
