"""Products of single weights by every backend, those first on which a target stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from gpu_gate.sections import Row, Task, fault_of, microseconds, synchronize
from gpu_gate.sizes import Sizes
from lightning_nm.patterns import NM, parse
from lightning_nm.sparse.backends import backends_for
from lightning_nm.sparse.choice import DENSE
from lightning_nm.sparse.comparison import Comparison, compare
from lightning_nm.sparse.dispatch import Dispatched

READING = (
    "Medians of the card's own clock in us (first and third quartile), bfloat16, caches flushed before each call; "
    "every result is held against float64. dense: cuBLAS. 'over dense': how many times as fast the fastest sparse "
    "backend is, without the time that a host takes to issue it. 'auto' minds that time too."
)


class Product(NamedTuple):
    """A batch by a weight."""

    size: tuple[int, int]
    pattern: str
    batch: int

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.size))} {self.pattern} batch {self.batch}"


def every(sizes: Sizes) -> list[Product]:
    """All of them: the larger batches of a pattern follow its smaller ones, as kernels are compiled."""
    return [
        Product(size, pattern, batch) for size in sizes.weights for batch in sizes.batches for pattern in sizes.patterns
    ]


def tasks(products: Sequence[Product], sizes: Sizes) -> list[Task]:
    return [Task(product.name, partial(_rows, product, sizes)) for product in products]


def _rows(product: Product, sizes: Sizes, until: float) -> Iterator[Row]:
    weight, pattern = _weight(product.size, product.pattern, sizes.device)
    x = _x(product, sizes.device)
    with torch.inference_mode():
        yield row(product, compare(weight, pattern, 1, x, seconds=sizes.seconds), list(backends_for(weight.device)))


def row(product: Product, compared: Comparison, backends: Sequence[str]) -> Row:
    """What came out."""
    times, over = compared.times, compared.over("dense")
    wrong = "; ".join(f"{name}: {fault}" for name, fault in compared.wrong.items())
    cells = {
        "weight": "x".join(map(str, product.size)),
        "pattern": product.pattern,
        "batch": str(product.batch),
        **{name: microseconds(times[name]) if name in times else "-" for name in backends},
        "over dense": "-" if over is None else f"{over:.2f}",
        "auto": compared.auto.backend if compared.auto else "-",
        "results": wrong or "right",
    }
    record = {
        **product._asdict(),
        "times": {name: timing._asdict() for name, timing in times.items()},
        "over_dense": over,
        "refusals": compared.refusals,
        "wrong": compared.wrong,
        "auto": asdict(compared.auto) if compared.auto else None,
    }
    return Row(cells, record, wrong)


@lru_cache(8)
def _weight(size: tuple[int, int], written: str, device: str) -> tuple[Tensor, NM]:
    pattern = parse(written)
    assert isinstance(pattern, NM)
    dense = torch.randn(size, device=device, generator=torch.Generator(device).manual_seed(0)).bfloat16()
    return torch.where(pattern.mask(dense), dense, 0.0), pattern


def _x(product: Product, device: str) -> Tensor:
    return torch.randn(product.batch, product.size[1], device=device).bfloat16()


def compile_kernels(written: str, first: Sequence[Product], sizes: Sizes) -> Iterator[str]:
    """Run every product of a pattern once, so that Triton has its kernels on disk; to be killed when time is up.

    Says what breaks down, and goes on: one kernel's fault is no other's.
    """
    everything = every(sizes)
    of_block = [(Product(sizes.block.down, p, tokens), False) for p in sizes.block_patterns for tokens in sizes.tokens]
    of_bench = [(p, True) for p in everything if p.size == sizes.weights[0] and p.batch in sizes.bench_batches]
    plan = [*((p, False) for p in first), *of_block, *of_bench, *((p, False) for p in everything)]
    for product, with_bias in dict.fromkeys(each for each in plan if each[0].pattern == written):
        weight, pattern = _weight(product.size, written, sizes.device)
        x, held = _x(product, sizes.device), Dispatched(weight, pattern, 1)
        bias = torch.zeros(product.size[0], dtype=x.dtype, device=x.device) if with_bias else None
        for name, backend in backends_for(weight.device).items():
            # cuSPARSELt compiles nothing, and would time its algorithms while others keep the card busy
            if name in (*DENSE, "cusparselt"):
                continue
            try:
                if backend.why_not(weight, pattern, x) is None:
                    with torch.inference_mode():
                        held.operand(name).linear(x, bias)
                    synchronize(sizes.device)
            except Exception as error:
                yield f"{product.name}{' with a bias' if with_bias else ''}, {name}: {fault_of(error)}"
