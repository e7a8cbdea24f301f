"""What the issue asks for on an H200, in one table, beside what was measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from gpu_gate.products import Product
from gpu_gate.sizes import Sizes

Records = Mapping[str, Sequence[Mapping[str, Any]]]
"""What the sections recorded, by their names; of a task that broke down its name, as "task"."""
SIZE = (14336, 4096)


class Reached(NamedTuple):
    """A target, and how far it was reached."""

    target: str
    asked: str
    measured: str
    value: float | None
    met: bool | None
    """None: not measured."""

    def cells(self) -> list[str]:
        met = {True: "yes", False: "no", None: "-"}[self.met]
        return [self.target, self.asked, self.measured, met]


class Target(Protocol):
    def reached(self, records: Records) -> Reached:
        """By what was recorded."""


class Faster(NamedTuple):
    """A pattern at some batches, as many times as fast as cuBLAS, at each of them."""

    words: str
    pattern: str
    batches: tuple[int, ...]
    least: float

    def products(self) -> list[Product]:
        """Largest batch first: it is the one that may miss."""
        return [Product(SIZE, self.pattern, batch) for batch in sorted(self.batches, reverse=True)]

    def reached(self, records: Records) -> Reached:
        wanted = {tuple(product) for product in self.products()}
        there = [r for r in _products(records) if (tuple(r["size"]), r["pattern"], r["batch"]) in wanted]
        asked = f">= {self.least:g}x dense"
        broken = _broken(records, ("products", "more products"), {product.name for product in self.products()})
        if not there:
            return Reached(self.words, asked, broken or "not reached in time", None, None)
        slowest = min(there, key=lambda record: record["over_dense"] or 0.0)
        value = slowest["over_dense"] or 0.0
        each = f", the least of {len(there)} of {len(wanted)} batches" if len(wanted) > 1 else ""
        said = f"{value:.2f}x at batch {slowest['batch']}{each}{broken and f'; {broken}'}"
        open_yet = value >= self.least and len(there) < len(wanted)
        return Reached(self.words, asked, said, value, None if open_yet else value >= self.least)


class Overhead(NamedTuple):
    """Of a training step with masks, over the dense one."""

    pattern: str
    most: float

    def reached(self, records: Records) -> Reached:
        words, asked = f"SR-STE step overhead, {self.pattern}", f"<= {self.most:.0%} of the dense step"
        there = [record for record in records.get("step", ()) if record.get("variant") == self.pattern]
        if not there:
            return Reached(words, asked, _broken(records, ("step",)) or "not reached in time", None, None)
        if fault := there[0].get("fault"):
            return Reached(words, asked, f"wrong: {fault}", None, None)
        value = there[0]["over_dense"] - 1
        return Reached(
            words, asked, f"{value:+.1%} (dense again: {there[0]['noise'] - 1:+.1%})", value, value <= self.most
        )


class NeverSlower(NamedTuple):
    """What "auto" chose, against dense, in every product that was measured."""

    def reached(self, records: Records) -> Reached:
        words, asked = '"auto" slower than dense by more than noise', "never"
        there = [record for record in _products(records) if record["auto"] and "dense" in record["times"]]
        if not there:
            return Reached(words, asked, "not reached in time", None, None)
        slower = [record for record in there if _is_slower(record)]
        first = f", first {slower[0]['pattern']} at batch {slower[0]['batch']}" if slower else ""
        return Reached(words, asked, f"{len(slower)} of {len(there)} products{first}", len(slower), not slower)


def _products(records: Records) -> list[Mapping[str, Any]]:
    both = [*records.get("products", ()), *records.get("more products", ())]
    return [record for record in both if "task" not in record]


def _broken(records: Records, sections: Sequence[str], names: Collection[str] | None = None) -> str:
    """The tasks that broke down, of those that have such names; "" if none did."""
    tasks = [record["task"] for section in sections for record in records.get(section, ()) if "task" in record]
    # a whole section may have broken down too
    mine = [task for task in tasks if names is None or task in names or task in sections]
    return f"broke down: {', '.join(mine)}" if mine else ""


def _is_slower(record: Mapping[str, Any]) -> bool:
    """Slower than dense is in three rounds of four, by the card's clock."""
    times = record["times"]
    chosen = times.get(record["auto"]["backend"])
    return chosen is not None and record["auto"]["backend"] != "dense" and chosen["median"] > times["dense"]["high"]


_TO_64 = (1, 2, 4, 8, 16, 32, 64)
TARGETS: tuple[Target, ...] = (
    Faster("2:4 decode to batch 64", "2:4", _TO_64, 1.6),
    Faster("1:4 to batch 32", "1:4", _TO_64[:-1], 2.8),
    Faster("1:8 to batch 4", "1:8", _TO_64[:3], 4.0),
    Faster("1:16 at batch 1", "1:16", _TO_64[:1], 6.0),
    Faster("vector-wise 1:4 at batch 4096 (V64)", "1:4V64", (4096,), 2.0),
    Faster("vector-wise 1:4 at batch 4096 (V128)", "1:4V128", (4096,), 2.0),
    Faster("2:4 at 4096 tokens and more", "2:4", (4096, 8192), 1.3),
    Overhead("2:4", 0.03),
    NeverSlower(),
)


def behind_targets(sizes: Sizes) -> list[Product]:
    """The products that targets speak of, each target's most telling one first."""
    lists = [target.products() for target in TARGETS if isinstance(target, Faster)]
    asked = [products[turn] for turn in range(max(map(len, lists))) for products in lists if turn < len(products)]
    return [p for p in asked if p.size in sizes.weights and p.pattern in sizes.patterns and p.batch in sizes.batches]
