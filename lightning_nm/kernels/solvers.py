"""Solvers of transposable masks by name: which stages, one after the other."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from lightning_nm.kernels import transposable
from lightning_nm.kernels.transposable.table import LARGEST_M

SOLVERS = ("exact", "entropic", "fast", "flow", "two_approximation")
EXACT = 16
"""The largest M that is solved exactly unless asked for otherwise; above, the entropic solver takes over."""


def default_solver(m: int) -> str:
    return "exact" if m <= EXACT else "entropic"


def solve(tiles: Tensor, n: int, solver: str, *, at_most: bool, stages: ModuleType = transposable) -> Tensor:
    """The mask of each tile ``[B, M, M]``, by the plain stages or by compiled ones."""
    scores = stages.scores_of(tiles)
    if solver == "flow":
        return transposable.flow(scores, n, at_most=at_most)
    if solver == "two_approximation":
        return transposable.two_approximation(scores, n)
    if solver == "exact" and not at_most and scores.shape[1] <= LARGEST_M:
        return stages.by_table(scores, n)  # type: ignore[no-any-return]
    mask = _first(scores, n, solver, at_most, stages)
    return stages.improve(scores, mask, n, at_most=at_most, swaps_only=solver != "exact")  # type: ignore[no-any-return]


def _first(scores: Tensor, n: int, solver: str, at_most: bool, stages: ModuleType) -> Tensor:
    """A feasible mask to be improved."""

    def planned() -> Tensor:
        return stages.fill(scores, stages.greedy(stages.plan(scores, n), n), n)  # type: ignore[no-any-return]

    if solver == "exact" and scores.shape[1] >= EXACT:
        return planned()  # cycles are dear where rows are many, and after a plan there are few
    mask: Tensor = stages.greedy(scores, n)
    if not at_most:
        mask = stages.fill(scores, mask, n)
    if solver != "entropic":
        return mask
    other = planned()
    better = (scores * other).sum((1, 2)) > (scores * mask).sum((1, 2))
    return torch.where(better[:, None, None], other, mask)
