"""Patterns, told by the zeros of a weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_nm.patterns import NM, Block1xN
from lightning_nm.sparse import recognise
from tests.sparse.models import sparse_weight


@pytest.mark.parametrize("written", ["1:2", "2:4", "1:4", "1:8", "3:8", "5:8", "2:7", "1:16", "5:32", "1:32"])
@pytest.mark.parametrize(("shape", "dim"), [((48, 32 * 7), 1), ((32 * 7, 48), 0), ((16, 32 * 7, 3, 2), 1)])
def test_nm(written: str, shape: tuple[int, ...], dim: int) -> None:
    """What a weight was cut to is found again, along its reduction dimension."""
    assert str(recognise(sparse_weight(shape, written, dim=dim), dim=dim)) == written


@pytest.mark.parametrize("n", [4, 8, 16, 32])
@pytest.mark.parametrize(("shape", "dim"), [((64, 40), 1), ((40, 64), 0), ((64, 20, 3), 1)])
def test_blocks(n: int, shape: tuple[int, ...], dim: int) -> None:
    """The largest blocks that are there, and as many zeros as there are."""
    found = recognise(sparse_weight(shape, f"1x{n}@0.75", dim=dim), dim=dim)
    assert isinstance(found, Block1xN)
    assert found.n == n
    assert found.density == pytest.approx(0.25, abs=1e-3)


def test_vector_wise_weights_are_blocks() -> None:
    """2:4V16: a block stores one index for 16 weights, N:M one for each."""
    assert recognise(sparse_weight((64, 64), "2:4V16")) == Block1xN(16, 0.5)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 6), st.floats(0.02, 0.9), st.integers(0, 2**31))
def test_whatever_is_found_holds(outputs: int, groups: int, density: float, seed: int) -> None:
    """Any weight: it obeys the pattern that is named, and that stores fewer weights than all."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(4 * outputs, 4 * groups, generator=rng)
    weight *= torch.rand(weight.shape, generator=rng) < density
    found = recognise(weight)
    if not isinstance(found, str):
        assert found.violations(weight) == 0
        assert float(weight.count_nonzero()) / weight.numel() <= found.density + 1e-4
        assert found.density <= 0.75


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.data())
def test_the_fewest_weights_are_stored(m: int, data: st.DataObject) -> None:
    """No N:M of any M, tried one by one, stores less."""
    n = data.draw(st.integers(1, m))
    weight = sparse_weight((8, 2 * m), f"{n}:{m}", seed=m)
    found = recognise(weight)
    every = [NM(k, d) for d in range(2, 2 * m + 1) if 2 * m % d == 0 for k in range(1, d + 1)]
    best = min(p.density for p in every if p.violations(weight) == 0)
    assert (best if isinstance(found, str) else found.density) <= max(best, 0.75) + 1e-6
    assert isinstance(found, str) == (best > 0.75)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (torch.zeros(8, 8), "nothing but zeros"),
        (torch.zeros(0, 8), "nothing but zeros"),
        (torch.ones(8, 8), "100% of its weights are not zero"),
        (torch.ones(6, 8) * torch.tensor([[1.0], [0.0]] * 3), "50% of its weights are not zero, in no N:M or 1xN"),
        (torch.full((8, 8), torch.nan), "100%"),
    ],
)
def test_reasons(weight: torch.Tensor, reason: str) -> None:
    """A weight that is in no pattern gets a reason."""
    found = recognise(weight)
    assert isinstance(found, str)
    assert reason in found
