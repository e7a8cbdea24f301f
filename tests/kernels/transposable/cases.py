"""Tiles that solvers trip over, and an oracle with nothing of ours in it."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import LinearConstraint, milp
from torch import Tensor

ODD_TILES = {
    "gaussian": lambda b, m: torch.randn(b, m, m),
    "ties": lambda b, m: torch.randint(-2, 3, (b, m, m)).float(),
    "zeros": lambda b, m: torch.zeros(b, m, m),
    "one row": lambda b, m: torch.randn(b, m, m) * (torch.arange(m) == 0)[:, None],
    "tiny": lambda b, m: torch.randn(b, m, m) * 1e-6,
    "huge": lambda b, m: torch.randn(b, m, m) * 1e6,
    "outlier": lambda b, m: torch.randn(b, m, m).index_fill(1, torch.tensor([0]), 1e30),
    "bfloat16": lambda b, m: torch.randn(b, m, m).bfloat16(),
    "float16 subnormals": lambda b, m: (torch.randn(b, m, m) * 1e-7).half(),
}


def tiles_of_kind(kind: str, tiles: int, m: int) -> Tensor:
    torch.manual_seed(0)
    return ODD_TILES[kind](tiles, m)


def optimum(scores: Tensor, n: int, *, at_most: bool = False) -> float:
    """The largest sum of scores, by a linear program (whose optimum is integral)."""
    m = scores.shape[0]
    sums = np.zeros((2 * m, m * m))
    for i in range(m):
        sums[i, i * m : (i + 1) * m] = 1
        sums[m + i, i::m] = 1
    unit = max(float(scores.max()), 1.0)
    constraints = LinearConstraint(sums, 0 if at_most else n, n)
    found = milp(-scores.numpy().ravel() / unit, constraints=constraints, bounds=(0, 1))
    return float(-found.fun * unit)


def is_feasible(masks: Tensor, n: int, *, at_most: bool = False) -> bool:
    sums = torch.cat([masks.sum(1), masks.sum(2)])
    return bool((sums <= n).all() if at_most else (sums == n).all())


def kept(scores: Tensor, masks: Tensor) -> Tensor:
    return (scores * masks).sum((1, 2))
