"""Reorder the channels of a model so that a sparsity pattern retains more of it. Its function stays the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_nm.conversion.rearrangement.commit import check_writable, commit
from lightning_nm.conversion.rearrangement.flow import Flow
from lightning_nm.conversion.rearrangement.report import Rearranged, Rearrangement
from lightning_nm.conversion.rearrangement.search import best_order
from lightning_nm.conversion.rearrangement.spaces import Moves, Space
from lightning_nm.conversion.rearrangement.terms import make_term
from lightning_nm.conversion.rearrangement.weights import Weights
from lightning_nm.training import Selection, select
from lightning_nm.training.selection import PatternLike

SEARCHES = ("sort", "exchange")


def rearrange(
    model: nn.Module,
    example_input: Any,
    pattern: PatternLike | Selection = "2:4",
    *,
    search: str = "exchange",
    budget: int = 20,
    seed: int = 0,
) -> Rearrangement:
    """Permute the channels of ``model`` in place so that its sparse weights keep more of their magnitude.

    A network computes the same when the outputs of a layer are permuted together with everything that reads them:
    normalisations, depthwise filters, the inputs of the next layers, all that a residual connection ties to them
    (Lin et al., "1xN Pattern for Pruning Convolutional Neural Networks", TPAMI 2022, arXiv 2105.14713; Pool & Yu,
    "Channel Permutations for N:M Sparsity", NeurIPS 2021). Which channels belong together is read off the operations
    that the model runs; those that meet an input or output of the network, heads of an attention, or an operation that
    is not known to keep channels apart stay, and the report says why. The result is compared with the model in float64
    (to 1e-10 of the outputs' largest magnitude, in evaluation and training mode, on ``example_input`` and on random
    inputs, parameters and statistics) before anything is changed.

    What ``example_input`` does not exercise cannot be followed. A parameter or buffer that takes part in no run, and
    that might hold channels that move, is refused by name; that another input would use a parameter in yet another
    place, or would take a branch without parameters, cannot be noticed.

    Do it before training: parameters keep their identity, and gradients that they hold are replaced by permuted ones,
    but **optimizer state is not** (momentum would belong to other channels), nor are averaged copies of the weights or
    what a `Sparsifier` keeps hidden. Weights are copied bit for bit.

    A space of 1,000 channels takes seconds under N:M, vector-wise N:M and 1xN. Transposable patterns, the outputs of
    vector-wise ones and patterns of your own mask whole weights anew for each trial: right, but slow in large layers.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> result = rearrange(model, torch.randn(2, 8), "2:4")
    >>> [space.weights for space in result.spaces if space.moved], result.after > result.before
    ([('0.weight[0]', '2.weight[1]')], True)

    Args:
        model: trained, on any device, in any mode and dtype.
        example_input: one input: a tensor, a tuple of positional arguments, or a dict of keyword arguments. With batch
            norm, at least two samples. Or a list of several such inputs, so that together they take every path through
            the model: optional arguments, experts, branches.
        pattern: for every weight that it fits, or the selection of those that will be sparse, each with its own
            pattern: ``select(model, pattern, ignore=[...])``.
        search: ``"exchange"`` swaps channels for as long as that gains; ``"sort"`` only sorts them by their norms (the
            1xN paper's way). In no space does sort retain less than the order as it was, nor exchange less than sort.
        budget: rounds of exchanges for each space. 20 are within .0005 of what many more find.
        seed: of the samples that exchanges are estimated on, and of shuffles.

    Returns:
        What moved, what stayed and why, and the retained magnitude before and after.

    Raises:
        ValueError: nothing is selected; the model cannot be copied or run on ``example_input``; weights are sharded,
            share memory, are expanded, or hold NaN or infinity; a parameter that no run uses might hold what would
            move; two runs of the model as it is differ; an unknown search.
        RuntimeError: the permuted model would compute something else. The model is left as it was, bit for bit.
    """
    if search not in SEARCHES:
        raise ValueError(f"search is one of {', '.join(SEARCHES)}; got {search!r}")
    if type(budget) is not int or budget < 0:
        raise ValueError(f"budget is a number of rounds, 0 or more; got {budget!r}")
    selection = (pattern if isinstance(pattern, Selection) else select(model, pattern)).require()
    weights = Weights(model, selection)
    flow = Flow(model, example_input)
    before = weights.share()
    orders: list[tuple[Space, Tensor]] = []
    reports = []
    for space in flow.spaces:
        order, report = _rearrange_space(space, weights, search, budget, seed)
        reports.append(report)
        if order is not None:
            orders.append((space, order))
    if orders:
        moves = Moves(orders)
        check_writable(flow.tensors, moves)
        flow.verify(orders)
        commit(flow.tensors, moves)
    return Rearrangement(reports, before, weights.share(), flow.notes)


def _rearrange_space(
    space: Space, weights: Weights, search: str, budget: int, seed: int
) -> tuple[Tensor | None, Rearranged]:
    """The new order, if there is a better one, and what to say of it."""
    report = Rearranged(space.weights(), len(space.sites) - len(space.weights()), space.size, False, space.stays)
    if space.stays:
        return None, report
    sites = {
        name: [site for site in space.sites if site.name == name] for name in dict.fromkeys(s.name for s in space.sites)
    }
    found = {name: make_term(weights.held[name], sites[name]) for name in sites if name in weights.held}
    terms = {name: term for name, term in found.items() if term is not None}
    if not terms:
        return None, report._replace(reason="no pattern of a selected weight depends on their order")
    names = list(terms)
    order = best_order(list(terms.values()), search, budget, seed)
    before = weights.share(names)
    if not weights.move(names, Moves([(space, order)])):
        return None, report._replace(reason="no better order was found", before=before, after=before)
    return order, report._replace(moved=True, before=before, after=weights.share(names))
