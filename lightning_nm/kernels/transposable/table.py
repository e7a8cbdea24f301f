"""The best transposable mask of all: for M up to 4, where they can be listed (90 for 2:4)."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import torch
from torch import Tensor

LARGEST_M = 4


@cache
def row_choices(n: int, m: int) -> Tensor:
    """Every way to keep ``n`` of ``m``: bool ``[C, M]``."""
    return torch.tensor([[j in kept for j in range(m)] for kept in combinations(range(m), n)])


@cache
def all_masks(n: int, m: int) -> Tensor:
    """Every transposable mask as the choice for each of its rows: int64 ``[masks, M]``."""
    choices = row_choices(n, m).int()
    rows = range(len(choices))
    fits = [c for c in product(rows, repeat=m) if bool((choices[list(c)].sum(0) == n).all())]
    return torch.tensor(fits)


def by_table(scores: Tensor, n: int) -> Tensor:
    """The mask of largest magnitude; the first of the list where there are several."""
    m = scores.shape[1]
    choices = row_choices(n, m).to(scores.device)
    masks = all_masks(n, m).to(scores.device)
    rows = torch.where(choices, scores[:, :, None, :], 0.0).sum(-1)  # [B, M, C]
    kept = torch.stack([rows[:, i, masks[:, i]] for i in range(m)]).sum(0)  # [B, masks]
    return choices[masks[kept.argmax(1)]]
