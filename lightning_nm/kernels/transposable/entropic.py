"""Transposable masks by entropy-regularised transport: near the optimum at any M, in a fixed number of steps.

After TSENOR (Meng et al., arXiv 2505.23949): maximise <S, W> + entropy over matrices S in [0, 1] with rows and columns
that sum to N, by Dykstra's alternating projections, while the entropy's weight falls. The fixed point has the form
``S = min(a_i b_j K_ij, 1)``, so that two vectors are all there is to iterate.

Nothing here rounds differently on another device: additions in a fixed order, no exponential but powers of two with
a chord between them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_nm.kernels.transposable.layout import units
from lightning_nm.kernels.units import sum_in_order

BITS = 25.0
"""log2 of the ratio of a tile's largest to its smallest kernel, at first; each stage doubles it."""
STAGES = (10, 20, 40)
"""Iterations of each stage."""
CHORD = 0.6565
"""2^f is about 1 + f (CHORD + (1 - CHORD) f) for f in [0, 1): monotonous, and exact at the ends."""
POWERS = [2.0**i for i in range(int(BITS) + 1)]


def plan(scores: Tensor, n: int) -> Tensor:
    """How much every entry wants to be kept, ``a_i b_j K_ij`` (> 1: wholly); float64 ``[B, M, M]``."""
    m = scores.shape[1]
    exponent = scores * (BITS / units(m))
    whole = exponent.floor()
    rest = exponent - whole
    powers = torch.tensor(POWERS, dtype=torch.float64, device=scores.device)
    kernel = powers[whole.long()] * (1 + rest * (CHORD + (1 - CHORD) * rest))
    a, b = (torch.ones_like(kernel[:, 0]) for _ in range(2))
    wanted = torch.full_like(a, n)  # a tensor: torch divides numbers by way of a rounded reciprocal
    for stage, iterations in enumerate(STAGES):
        if stage:
            a, b, kernel = a * a, b * b, kernel * kernel
        for _ in range(iterations):
            part = (a[:, :, None] * b[:, None, :] * kernel).clamp(max=1.0)
            rows = wanted / sum_in_order(part, 2)
            columns = wanted / sum_in_order(rows[:, :, None] * part, 1)
            a, b = a * rows, b * columns
    return a[:, :, None] * b[:, None, :] * kernel
