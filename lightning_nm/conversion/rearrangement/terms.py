"""What an order of channels is worth to one weight: the magnitude that its pattern retains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_nm import kernels
from lightning_nm.conversion.rearrangement.spaces import Site
from lightning_nm.patterns import NM, Block1xN, Filter, Pattern, Unstructured
from lightning_nm.patterns.base import other_dim
from lightning_nm.training import Selected


class Estimate(NamedTuple):
    """What swaps are worth: slot i, given the content of slot j, is worth ``sum_r max(need[i, r], have[j, r])`` more
    than ``base[i]``.
    """

    need: Tensor
    """``[slots, rows]``"""
    base: Tensor
    """``[slots]``"""


class Term(ABC):
    """A weight whose retained magnitude depends on the order of a space's channels.

    An order is int64 ``[channels]``: slot i gets channel ``order[i]``; the identity is the model as it was.
    """

    norms: Tensor
    """l1 norm of each channel, ``[channels]``."""
    cells: Tensor
    """Which slots share a decision, ``[channels]``: swaps among equal numbers change nothing."""
    content: Tensor | None = None
    """``[channels, rows]``: what `estimate` compares with; None where it can estimate nothing."""

    @abstractmethod
    def value(self, order: Tensor) -> float:
        """Sum of the retained magnitudes, without those that no order changes."""

    def estimate(self, order: Tensor, rows: Tensor) -> Estimate:
        """Of all slots, on some of the rows: for terms that have content."""
        raise AssertionError(f"{type(self).__name__} estimates nothing")


def make_term(weight: Selected, sites: Sequence[Site]) -> Term | None:
    """The term of one weight that holds channels of a space at ``sites``, or None if their order does not matter."""
    pattern, dim = weight.pattern, weight.dim % weight.param.dim()
    sites = [site for site in sites if _matters(pattern, site.dim == dim)]
    if not sites:
        return None
    magnitude = weight.param.detach().abs().float().cpu()
    if len(sites) == 1:
        (site,) = sites
        if isinstance(pattern, NM) and not pattern.transposable and site.dim == dim:
            return GroupTerm(
                _units(magnitude, other_dim(dim, magnitude.dim()), pattern.vector), pattern.n, pattern.m, site
            )
        if isinstance(pattern, Block1xN) and len(site.positions[0]) == 1:
            return BlockTerm(magnitude, pattern, dim, site)
    return MaskTerm(magnitude, pattern, dim, sites)


def _matters(pattern: Pattern, along_reduction: bool) -> bool:
    """Whether the order along a dimension changes what the pattern retains."""
    if isinstance(pattern, (Unstructured, Filter)):
        return False
    if isinstance(pattern, Block1xN):
        return not along_reduction and pattern.n > 1
    if isinstance(pattern, NM):
        return pattern.n < pattern.m and (along_reduction or pattern.transposable or pattern.vector > 1)
    return True


def _cell(pattern: Pattern, along_reduction: bool) -> int:
    """How many neighbours share a decision."""
    if isinstance(pattern, NM):
        return pattern.m if along_reduction or pattern.transposable else pattern.vector
    return pattern.n if isinstance(pattern, Block1xN) else 1


def _units(magnitude: Tensor, dim: int, size: int) -> Tensor:
    """``size`` consecutive entries along ``dim`` summed."""
    if size == 1:
        return magnitude
    summed: Tensor = magnitude.unflatten(dim, (-1, size)).sum(dim + 1)  # type: ignore[no-untyped-call]
    return summed


class GroupTerm(Term):
    """N:M with channels along the reduction dimension: each row of every group by itself.

    Swaps are worth what Pool & Yu (NeurIPS 2021) compute by trying them: with the other M-1 of its group given, an
    entry c is worth ``max(c, N-th largest of the others)``.

    Args:
        magnitude: of the weight.
        site: where the channels are.
    """

    def __init__(self, magnitude: Tensor, n: int, m: int, site: Site) -> None:
        self.n, self.m = n, m
        columns = magnitude.movedim(site.dim, 0).reshape(site.size, -1)
        # only groups that hold a channel; others do not change
        touched, group = torch.unique(site.positions // m, return_inverse=True)
        self._columns = columns.unflatten(0, (-1, m))[touched].flatten(0, 1)  # type: ignore[no-untyped-call]
        self._slots = group * m + site.positions % m
        self.norms = self._columns[self._slots].sum((1, 2))
        self.cells = group[:, 0]
        if len(site.positions[0]) == 1:
            self.content = self._columns[self._slots[:, 0]]

    def _ordered(self, order: Tensor) -> Tensor:
        columns: Tensor = self._columns.clone()
        columns[self._slots] = self._columns[self._slots[order]]
        return columns

    def value(self, order: Tensor) -> float:
        columns = self._ordered(order)
        mask = kernels.nm_mask(columns, self.n, self.m, 0)
        return float((columns * mask).sum(dtype=torch.float64))

    def estimate(self, order: Tensor, rows: Tensor) -> Estimate:
        columns = self._ordered(order)[:, rows]
        ranked = columns.view(-1, self.m, len(rows)).sort(1, descending=True).values
        # of each slot's group, [slots, rows]: the N-th and (N+1)-th largest
        nth, next_one = ranked[self.cells, self.n - 1], ranked[self.cells, self.n]
        mine = columns[self._slots[:, 0]]
        kept = mine >= nth
        need = torch.where(kept, next_one, nth)
        return Estimate(need, -torch.where(kept, mine, nth).sum(1))


class BlockTerm(Term):
    """1xN blocks with channels along the outputs: one threshold for all blocks of the layer.

    With the threshold held at t, a block of norm s is worth ``max(s - t, 0)`` (and t for each that is kept); a channel
    c added to the others of its block, of norm r, is worth ``max(c, t - r) - (t - r)``.
    """

    def __init__(self, magnitude: Tensor, pattern: Block1xN, dim: int, site: Site) -> None:
        inputs_last = magnitude.movedim((site.dim, dim), (0, -1))
        self._outputs = inputs_last.reshape(site.size, -1, magnitude.shape[dim]).sum(1)  # [outputs, inputs]
        self._n = pattern.n
        self._kept = pattern.kept_units(self._outputs.numel() // pattern.n)
        self._slots = site.positions[:, 0]
        self.content = self._outputs[self._slots]
        self.norms = self.content.sum(1)
        self.cells = self._slots // pattern.n

    def _blocks(self, order: Tensor) -> Tensor:
        """Norms, ``[outputs / N, inputs]``."""
        assert self.content is not None
        outputs = self._outputs.clone()
        outputs[self._slots] = self.content[order]
        return outputs.view(-1, self._n, outputs.shape[1]).sum(1)

    def value(self, order: Tensor) -> float:
        return float(self._blocks(order).flatten().topk(self._kept).values.sum(dtype=torch.float64))

    def estimate(self, order: Tensor, rows: Tensor) -> Estimate:
        assert self.content is not None
        blocks = self._blocks(order)
        threshold = blocks.flatten().topk(self._kept).values[-1]
        mine = blocks[:, rows][self.cells]
        need = threshold - (mine - self.content[order][:, rows])
        return Estimate(need, -(need + (mine - threshold).clamp(min=0)).sum(1))


class MaskTerm(Term):
    """Any pattern, by masking the whole weight anew: right, but slow, and no guide to which swaps are worth trying."""

    def __init__(self, magnitude: Tensor, pattern: Pattern, dim: int, sites: Sequence[Site]) -> None:
        self._magnitude, self._pattern, self._dim, self._sites = magnitude, pattern, dim, sites
        site = sites[0]
        columns = magnitude.movedim(site.dim, 0).flatten(1)
        self.norms = columns[site.positions].sum((1, 2))
        self.cells = site.positions[:, 0] // _cell(pattern, site.dim == dim)
        if isinstance(pattern, NM) and pattern.transposable and len(site.positions[0]) == 1:
            # the same weight without the columns' constraint says which swaps to try
            self._guide = GroupTerm(magnitude, pattern.n, pattern.m, site)
            self.content = self._guide.content

    def value(self, order: Tensor) -> float:
        weight = self._magnitude
        for site in self._sites:
            weight = weight.index_select(site.dim, site.index(order))
        return float((weight * self._pattern.mask(weight, dim=self._dim)).sum(dtype=torch.float64))

    def estimate(self, order: Tensor, rows: Tensor) -> Estimate:
        return self._guide.estimate(order, rows)
