"""Transposable masks entry by entry: quick, feasible, and where every better solver starts."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nm.kernels.transposable.layout import NEVER


def greedy(priority: Tensor, n: int) -> Tensor:
    """Largest priority first, wherever row and column have room; ties by index. Tiles may end short of N."""
    order = priority.flatten(1).sort(dim=1, descending=True, stable=True).indices
    return _in_order(order, priority.shape[1], room=n, both=True)


def two_approximation(scores: Tensor, n: int) -> Tensor:
    """Prune the lightest entry first, as long as its row *or* its column has more than N left.

    Hubara et al. (arXiv 2102.08124), algorithm 1. What it prunes weighs at most twice what has to go, but rows and
    columns end with N *at most*: .37 of the entries at 2:4.
    """
    m = scores.shape[1]
    order = scores.flatten(1).sort(dim=1, stable=True).indices
    return ~_in_order(order, m, room=m - n, both=False)


def _in_order(order: Tensor, m: int, room: int, both: bool) -> Tensor:
    """Take entries in ``order`` while their row and column, or one of them, have taken fewer than ``room``."""
    tiles = len(order)
    here = torch.arange(tiles, device=order.device)
    taken = torch.zeros(tiles, m * m, dtype=torch.bool, device=order.device)
    in_row, in_column = (torch.zeros(tiles, m, dtype=torch.int32, device=order.device) for _ in range(2))
    for entry in order.unbind(1):
        row, column = entry // m, entry % m
        by_row, by_column = in_row[here, row] < room, in_column[here, column] < room
        takes = by_row & by_column if both else by_row | by_column
        taken[here, entry] = takes
        in_row[here, row] += takes
        in_column[here, column] += takes
    return taken.view(tiles, m, m)


def fill(scores: Tensor, mask: Tensor, n: int) -> Tensor:
    """Complete masks that have room in some row i and column j, by the best exchange.

    Keep (i, y) and (x, j) instead of (x, y). After `greedy` there always is one.
    """
    mask = mask.clone()
    m = scores.shape[1]
    active = (mask.sum(2) < n).any(1).nonzero().squeeze(1)
    while len(active):
        s, w = mask[active], scores[active]
        here = torch.arange(len(active), device=w.device)
        i = (s.sum(2) < n).int().argmax(1)
        j = (s.sum(1) < n).int().argmax(1)
        gains = torch.where(s[here, i], NEVER, w[here, i])[:, None, :]  # by (i, y)
        gains = gains + torch.where(s[here, :, j], NEVER, w[here, :, j])[:, :, None]  # by (x, j)
        exchange = torch.where(s, gains - w, 2 * NEVER).flatten(1).argmax(1)
        x, y = exchange // m, exchange % m
        mask[active, x, y] = False
        mask[active, i, y] = True
        mask[active, x, j] = True
        active = active[(mask[active].sum(2) < n).any(1)]
    return mask
