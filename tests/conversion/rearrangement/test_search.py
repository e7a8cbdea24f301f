"""Orders that retain more: never less than before, the best of tiny ones, planted ones found again."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.search import best_order
from lightning_nm.conversion.rearrangement.terms import Term
from lightning_nm.patterns import NM, Block1xN, Pattern, parse
from tests.conversion.rearrangement.test_terms import site, term_of


def whole(weight: Tensor, pattern: Pattern, dim: int) -> Term:
    size = weight.shape[dim]
    term = term_of(weight, pattern, site(dim, torch.arange(size), size, weight.dim()))
    assert term is not None
    return term


def share(weight: Tensor, pattern: Pattern, dim: int, search: str, budget: int = 20) -> tuple[float, float]:
    """(as it is, rearranged)."""
    term = whole(weight, pattern, dim)
    order = best_order([term], search, budget, 0)
    total = float(weight.abs().sum())
    return term.value(torch.arange(weight.shape[dim])) / total, term.value(order) / total


PATTERNS = ["2:4", "1:4", "4:8", "2:4T", "2:4V4", "1x4@0.5", "1x8@0.75"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_never_less_than_sorted_nor_than_as_it_is(pattern: str, spread: float) -> None:
    """And on weights without structure, more than both."""
    torch.manual_seed(0)
    weight = torch.randn(32, 32) * (spread * torch.randn(32, 1)).exp() * (spread * torch.randn(32)).exp()
    dim = 0 if "x" in pattern else 1
    before, by_sorting = share(weight, parse(pattern), dim, "sort")
    exchanged = share(weight, parse(pattern), dim, "exchange")[1]
    assert before <= by_sorting < exchanged


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1x4@0.5", "2:4T", "2:4V4"])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_tiny_ones(pattern: str, seed: int) -> None:
    """Eight channels in two groups: by trying all 35 ways."""
    torch.manual_seed(seed)
    term = whole(torch.randn(8, 8), parse(pattern), 0 if "x" in pattern else 1)
    ways = [
        order
        for order in permutations(range(8))
        if order[0] == 0 and order[1] < order[2] < order[3] and order[4:] == tuple(sorted(order[4:]))
    ]
    best = max(term.value(torch.tensor(order)) for order in ways)
    assert len(ways) == 35
    assert term.value(best_order([term], "exchange", 100, 0)) == pytest.approx(best, rel=1e-6)


def test_a_planted_order_is_found_again() -> None:
    """Groups of which all but 1 % is retained, shuffled: nearly all of it comes back."""
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    weight *= torch.where(NM(2, 4).mask(weight), 1.0, 0.01)
    before, after = share(weight[:, torch.randperm(64)], NM(2, 4), 1, "exchange", budget=40)
    assert before < 0.9
    assert after > 0.99


def test_a_planted_block_order_is_found_again_by_sorting() -> None:
    """Filters of two norms, shuffled."""
    torch.manual_seed(0)
    weight = torch.randn(64, 32) * torch.where(torch.arange(64) < 32, 1.0, 0.01)[:, None]
    before, after = share(weight[torch.randperm(64)], Block1xN(8, 0.5), 0, "sort")
    assert before < 0.8
    assert after > 0.98


@pytest.mark.parametrize(
    ("spread", "n", "before", "after"), [(0.0, 4, 0.652, 0.652), (0.5, 4, 0.692, 0.737), (0.5, 32, 0.568, 0.699)]
)
def test_published_gains_of_sorting_filters(spread: float, n: int, before: float, after: float) -> None:
    """Retained l1 at p = .5, filters of equal and of lognormal norms; the paper's pattern and its sort."""
    torch.manual_seed(0)
    weight = torch.randn(512, 512) * (spread * torch.randn(512, 1)).exp()
    found = share(weight, Block1xN(n, 0.5), 0, "sort")
    assert found == pytest.approx((before, after), abs=0.008)


def test_the_inputs_and_outputs_that_share_an_order_count_together() -> None:
    """One order for the inputs of two layers and the outputs of a third is the best for their sum."""
    torch.manual_seed(0)
    terms = [
        whole(torch.randn(16, 32), NM(2, 4), 1),
        whole(torch.randn(8, 32, 3, 3), NM(1, 8), 1),
        whole(torch.randn(32, 16), Block1xN(4, 0.5), 0),
    ]
    identity = torch.arange(32)
    before, after = (
        sum(term.value(order) for term in terms) for order in (identity, best_order(terms, "exchange", 20, 0))
    )
    assert after > before


def test_it_is_deterministic() -> None:
    """The same order again for a seed, also where rows are sampled."""
    torch.manual_seed(0)
    term = whole(torch.randn(1200, 512), NM(2, 4), 1)
    first = best_order([term], "exchange", 3, 0)
    torch.randn(7)
    assert torch.equal(first, best_order([term], "exchange", 3, 0))
    assert torch.equal(first.sort().values, torch.arange(512))
    assert term.value(first) > term.value(torch.arange(512))


def test_nothing_to_gain() -> None:
    """Equal channels stay in their order."""
    term = whole(torch.ones(4, 8), NM(2, 4), 1)
    assert torch.equal(best_order([term], "exchange", 5, 0), torch.arange(8))
