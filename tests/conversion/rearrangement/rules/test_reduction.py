"""Sums do not ask for an order; positions do."""

from __future__ import annotations

import pytest
import torch

from tests.conversion.rearrangement.rules.between import Op, check

FREE: dict[str, Op] = {
    "sum": lambda x: x * x.sum(1, keepdim=True),
    "mean of places": lambda x: x.mean((2, 3)),
    "mean of all": lambda x: x - x.mean(),
    "largest": lambda x: x / x.amax(1, keepdim=True).abs(),
    "largest of all": lambda x: x / x.abs().max(),
    "of two": lambda x: torch.max(x, x.mean(1, keepdim=True)),
    "variance": lambda x: x * x.var(1, keepdim=True) + x.std((2, 3), keepdim=True),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True) + torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "product": lambda x: x * x.prod(1, keepdim=True),
    "largest place": lambda x: x.max(3).values.amax(2),
    "cumulated over places": lambda x: x.cumsum(2).cummax(3).values,
    "sorted places": lambda x: x.flatten(2).sort(2).values.transpose(1, 2),
    "any": lambda x: x * (x > 0).any(1, keepdim=True),
}


@pytest.mark.parametrize("name", FREE)
def test_free(name: str) -> None:
    check(FREE[name], True)


STAYS: dict[str, Op] = {
    "largest with its position": lambda x: x.max(1).values.flatten(1),
    "position of the largest": lambda x: x * x.argmax(1, keepdim=True),
    "cumulated": lambda x: x.cumsum(1),
    "sorted": lambda x: x.sort(1).values,
    "top": lambda x: x.topk(3, 1).values,
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name: str) -> None:
    check(STAYS[name], False)
