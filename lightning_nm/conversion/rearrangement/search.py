"""Which order of a space's channels retains the most magnitude."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from lightning_nm.conversion.rearrangement.terms import Term

# multiply-adds of one full table of swaps; more rows than this allows are sampled
_TABLE = 3e8

# in spaces of so few channels every swap is tried before giving up
_TRY_ALL = 16


def best_order(terms: Sequence[Term], search: str, budget: int, seed: int) -> Tensor:
    """The order, int64 ``[channels]``, of largest retained magnitude that was found; never worse than the identity.

    ``"sort"``: of the identity, channels by falling l1 norm (like with like, as Lin et al. sort filters), and dealt
    out like cards (large with small), the best.

    ``"exchange"``: from there, pairs of channels change places wherever that gains, as many at once as touch no common
    group, in ``budget`` rounds; where no swap gains, some channels are shuffled and it goes on (after Pool & Yu,
    NeurIPS 2021, who exchange between pairs of stripes). What a swap is worth is estimated for all pairs at once,
    on a sample of rows where a layer is large; whether a round is kept is decided by what is really retained.
    """
    identity = torch.arange(len(terms[0].norms))
    by_norm = sum((term.norms for term in terms), torch.zeros(len(identity))).argsort(descending=True, stable=True)
    orders = [identity, by_norm, *(_dealt(by_norm, term.cells) for term in terms[:1])]
    values = [_value(terms, order) for order in orders]
    best = max(range(len(orders)), key=lambda i: values[i])
    if search == "sort":
        return orders[best]
    return _Exchange(terms, seed).run(orders[best], values[best], budget)


def _value(terms: Sequence[Term], order: Tensor) -> float:
    return sum(term.value(order) for term in terms)


def _dealt(by_norm: Tensor, cells: Tensor) -> Tensor:
    """The largest channels one to each cell, then the next, ..."""
    sizes = torch.zeros(int(cells.max()) + 1, dtype=torch.long)
    nth = torch.empty_like(cells)
    for slot, cell in enumerate(cells.tolist()):
        nth[slot] = sizes[cell]
        sizes[cell] += 1
    slots = sorted(range(len(cells)), key=lambda slot: (int(nth[slot]), int(cells[slot])))
    order = torch.empty_like(by_norm)
    order[slots] = by_norm
    return order


class _Exchange:
    def __init__(self, terms: Sequence[Term], seed: int) -> None:
        self._terms = terms
        self._rng = torch.Generator().manual_seed(seed)
        rows = sum(term.content.shape[1] for term in terms if term.content is not None)
        share = min(1.0, _TABLE / max(1, rows * len(terms[0].norms) ** 2))
        self._tables = [_Table(term, share, self._rng) for term in terms if term.content is not None]

    def run(self, order: Tensor, value: float, budget: int) -> Tensor:
        best, best_value = order, value
        for _ in range(budget):
            better = self._round(order, value)
            if better is not None:
                order, value = better
                if value > best_value:
                    best, best_value = order, value
            elif self._tables and len(order) > 2:
                order = self._shuffled(best)
                value = _value(self._terms, order)
        return best

    def _round(self, order: Tensor, value: float) -> tuple[Tensor, float] | None:
        """Many swaps that gain; fewer of them, the best, if together they do not."""
        swaps = self._swaps(order)
        while swaps:
            if better := self._swapped(order, value, swaps):
                return better
            swaps = swaps[: len(swaps) // 2]
        if len(order) > _TRY_ALL:
            return None
        pairs = combinations(range(len(order)), 2)
        return next((better for pair in pairs if (better := self._swapped(order, value, [pair]))), None)

    def _swapped(self, order: Tensor, value: float, swaps: list[tuple[int, int]]) -> tuple[Tensor, float] | None:
        swapped = order.clone()
        i, j = torch.tensor(swaps).T
        swapped[i], swapped[j] = order[j], order[i]
        found = _value(self._terms, swapped)
        # sums in another order differ in their last digits
        return (swapped, found) if found > value * (1 + 1e-9) else None

    def _swaps(self, order: Tensor) -> list[tuple[int, int]]:
        """Pairs of slots, the most promising first, no two of which touch the same cell."""
        if not self._tables:
            # nothing says which: pairs at random
            shuffled = torch.randperm(len(order), generator=self._rng)[: len(order) // 2 * 2]
            return [(int(i), int(j)) for i, j in shuffled.view(-1, 2)]
        gains = sum(table.gains(order) for table in self._tables)
        assert isinstance(gains, Tensor)
        best = gains.max(1)
        taken: list[set[int]] = [set() for _ in self._terms]
        cells = [term.cells.tolist() for term in self._terms]
        swaps = []
        for i in best.values.argsort(descending=True, stable=True).tolist():
            j = int(best.indices[i])
            if best.values[i] <= 0:
                break
            if any(cell[i] in used or cell[j] in used for cell, used in zip(cells, taken)):
                continue
            swaps.append((i, j))
            for cell, used in zip(cells, taken):
                used.update((cell[i], cell[j]))
        return swaps

    def _shuffled(self, order: Tensor) -> Tensor:
        some = torch.randperm(len(order), generator=self._rng)[: max(3, min(len(order) // 8, 32))]
        order = order.clone()
        order[some] = order[some.roll(1)]
        return order


class _Table:
    """What every slot would be worth with every channel in it, kept from round to round where nothing changed."""

    def __init__(self, term: Term, share: float, rng: torch.Generator) -> None:
        assert term.content is not None
        rows = term.content.shape[1]
        sampled = max(1, round(rows * share))
        self._rows = torch.randperm(rows, generator=rng)[:sampled].sort().values
        self._scale = rows / sampled
        self._term = term
        self._content = term.content[:, self._rows].contiguous()
        self._half = self._content.sum(1) / 2
        self._need: Tensor | None = None
        # [slots, channels]: half the l1 distance between what a slot needs and what a channel has
        self._distance = torch.empty(len(self._content), len(self._content))

    def gains(self, order: Tensor) -> Tensor:
        """``[slots, slots]``: how much more is retained if two slots change contents; 0 within a cell."""
        need, base = self._term.estimate(order, self._rows)
        changed = torch.ones(len(need), dtype=torch.bool)
        if self._need is not None:
            changed = (need != self._need).any(1)
        self._need = need
        self._distance[changed] = torch.cdist(need[changed], self._content, p=1) / 2
        # max(a, b) = (a + b + |a - b|) / 2
        worth = (self._distance + self._half)[:, order] + (base + need.sum(1) / 2)[:, None]
        cells = self._term.cells
        return (worth + worth.T).masked_fill_(cells[:, None] == cells, 0.0) * self._scale
