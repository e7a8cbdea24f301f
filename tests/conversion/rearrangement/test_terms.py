"""What an order is worth to a weight: equal to masking the permuted weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nm.conversion.rearrangement.spaces import Site
from lightning_nm.conversion.rearrangement.terms import BlockTerm, GroupTerm, MaskTerm, Term, make_term
from lightning_nm.patterns import NM, Block1xN, Filter, Pattern, Unstructured
from lightning_nm.training import Selected


def site(dim: int, positions: Tensor, size: int, dims: int = 2) -> Site:
    return Site("weight", dim, positions if positions.dim() > 1 else positions[:, None], size, dims)


def term_of(weight: Tensor, pattern: Pattern, *sites: Site, dim: int = 1) -> Term | None:
    return make_term(Selected("weight", nn.Parameter(weight), pattern, dim), sites)


def retained(weight: Tensor, pattern: Pattern, sites: tuple[Site, ...], order: Tensor, dim: int = 1) -> float:
    for s in sites:
        weight = weight.index_select(s.dim, s.index(order))
    return float((weight.abs() * pattern.mask(weight, dim=dim)).sum(dtype=torch.float64))


ALL = torch.arange(16)
# name: pattern, shape, reduction dimension, sites, kind of term
CASES = {
    "2:4": (NM(2, 4), (8, 16), 1, (site(1, ALL, 16),), GroupTerm),
    "1:8, taps": (NM(1, 8), (4, 16, 3, 3), 1, (site(1, ALL, 16, 4),), GroupTerm),
    "3:4, transposed": (NM(3, 4), (16, 8, 2), 0, (site(0, ALL, 16, 3),), GroupTerm),
    "2:4, some of the inputs": (NM(2, 4), (8, 24), 1, (site(1, torch.arange(3, 19), 24),), GroupTerm),
    "2:4, flattened": (NM(2, 4), (8, 48), 1, (site(1, torch.arange(48).view(16, 3), 48),), GroupTerm),
    "2:4, flattened, channels last": (NM(2, 4), (8, 48), 1, (site(1, torch.arange(48).view(3, 16).T, 48),), GroupTerm),
    "2:4V4": (NM(2, 4, vector=4), (8, 16), 1, (site(1, ALL, 16),), GroupTerm),
    "2:4V4, outputs": (NM(2, 4, vector=4), (16, 8), 1, (site(0, ALL, 16),), MaskTerm),
    "2:4T": (NM(2, 4, transposable=True), (8, 16), 1, (site(1, ALL, 16),), MaskTerm),
    "2:4T, both": (NM(2, 4, transposable=True), (16, 16), 1, (site(0, ALL, 16), site(1, ALL, 16)), MaskTerm),
    "1x4": (Block1xN(4, 0.5), (16, 8), 1, (site(0, ALL, 16),), BlockTerm),
    "1x4, taps": (Block1xN(4, 0.7), (16, 8, 3, 3), 1, (site(0, ALL, 16, 4),), BlockTerm),
    "1x2, transposed": (Block1xN(2, 0.5), (8, 16, 3), 0, (site(1, ALL, 16, 3),), BlockTerm),
    "1x4, some of the outputs": (Block1xN(4, 0.5), (24, 8), 1, (site(0, torch.arange(2, 18), 24),), BlockTerm),
}


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_what_the_pattern_retains(name: str) -> None:
    """For the identity and for random orders, by every kind of term."""
    pattern, shape, dim, sites, kind = CASES[name]
    torch.manual_seed(0)
    weight = torch.randn(shape)
    term = term_of(weight, pattern, *sites, dim=dim)
    assert type(term) is kind
    identity = torch.arange(16)
    elsewhere = retained(weight, pattern, sites, identity, dim) - term.value(identity)
    assert elsewhere == pytest.approx(0, abs=1e-4) or name == "2:4, some of the inputs"
    for order in (torch.randperm(16) for _ in range(4)):
        assert term.value(order) == pytest.approx(retained(weight, pattern, sites, order, dim) - elsewhere, rel=1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[4] is not BlockTerm])
def test_the_norms_are_those_of_the_channels(name: str) -> None:
    pattern, shape, dim, sites, _ = CASES[name]
    weight = torch.randn(shape)
    term = term_of(weight, pattern, *sites, dim=dim)
    columns = weight.abs().movedim(sites[0].dim, 0).flatten(1).sum(1)
    assert torch.allclose(term.norms, columns[sites[0].positions].sum(1), rtol=1e-5)


@pytest.mark.parametrize("name", ["2:4", "1:8, taps", "3:4, transposed", "2:4, some of the inputs", "2:4V4"])
def test_the_estimate_is_exact_for_groups(name: str) -> None:
    """What a slot is worth with a channel in it, summed over both slots of a swap, is the change of the value."""
    pattern, shape, dim, sites, _ = CASES[name]
    torch.manual_seed(0)
    term = term_of(torch.randn(shape), pattern, *sites, dim=dim)
    order = torch.randperm(16)
    need, base = term.estimate(order, torch.arange(term.content.shape[1]))
    worth = torch.maximum(need[:, None], term.content[order][None]).sum(2) + base[:, None]
    for i, j in ((0, 9), (3, 14), (5, 12), (15, 1)):
        swapped = order.clone()
        swapped[i], swapped[j] = order[j], order[i]
        if term.cells[i] != term.cells[j]:
            gain = term.value(swapped) - term.value(order)
            assert float(worth[i, j] + worth[j, i]) == pytest.approx(gain, abs=1e-4)
    assert torch.allclose(worth.diagonal(), torch.zeros(16), atol=1e-4)


def test_the_estimate_of_blocks_is_no_less_than_the_gain() -> None:
    """The threshold held, a swap is worth what it gains or more; nothing is lost by what is left untried."""
    torch.manual_seed(0)
    term = term_of(torch.randn(16, 8), Block1xN(4, 0.5), site(0, ALL, 16))
    order = torch.randperm(16)
    need, base = term.estimate(order, torch.arange(8))
    worth = torch.maximum(need[:, None], term.content[order][None]).sum(2) + base[:, None]
    for i in range(16):
        for j in range(16):
            swapped = order.clone()
            swapped[i], swapped[j] = order[j], order[i]
            if term.cells[i] != term.cells[j]:
                assert float(worth[i, j] + worth[j, i]) >= term.value(swapped) - term.value(order) - 1e-4


def test_orders_that_do_not_matter() -> None:
    """Outputs of N:M, inputs of 1xN, anything of unstructured patterns and of whole filters."""
    weight = torch.randn(16, 16)
    for pattern, dim in ((NM(2, 4), 0), (NM(4, 4), 1), (Block1xN(4, 0.5), 1), (Block1xN(1, 0.5), 0)):
        assert term_of(weight, pattern, site(dim, ALL, 16)) is None
    for dim in (0, 1):
        assert term_of(weight, Unstructured(0.5), site(dim, ALL, 16)) is None
        assert term_of(weight, Filter(0.5), site(dim, ALL, 16)) is None
