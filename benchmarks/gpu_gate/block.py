"""A transformer block, dense and accelerated, end to end."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from gpu_gate.networks import Block, random
from gpu_gate.sections import Row, Task, far, fault_of, microseconds
from gpu_gate.sizes import Sizes
from lightning_nm.patterns import parse
from lightning_nm.sparse import accelerate
from lightning_nm.sparse.decision import IN_GRAPH
from lightning_nm.sparse.timing import Timing, stopwatch, take_turns
from lightning_nm.training import select

READING = (
    "One sequence of so many tokens through a block in Llama's shape (hidden 4096, 32 heads, SwiGLU of 14336, no "
    "rotary embeddings), bfloat16, causal, without a cache; us, medians (quartiles) of rounds in which all take turns, "
    "caches flushed. 'graph': recorded in a CUDA graph, ours by 'auto_in_graph'. 'compiled': torch.compile of the "
    "dense block, with CUDA graphs. 'over best': the fastest of ours against the fastest dense one; 'over eager': "
    "without graphs, and the dense block not compiled. Results are held against float32 dense with the same sparse "
    "weights."
)
DENSE = ("dense", "dense, graph", "dense, compiled")
_COMPILES = 35.0
"""Seconds that must be left for the dense block to be compiled and for the patterns' turn after it."""

Call = Callable[[], Tensor]


class Dense:
    """The dense block at a number of tokens, in every way in which it is called."""

    @torch.no_grad()
    def __init__(self, tokens: int, sizes: Sizes, until: float) -> None:
        self.tokens = tokens
        self.x = random((1, tokens, sizes.block.hidden), sizes.device).bfloat16()
        torch.manual_seed(0)
        with torch.device(sizes.device):
            self.block = Block(sizes.block).bfloat16().eval()
        self.calls: dict[str, Call] = {"dense": partial(self.block, self.x)}
        self.failed: dict[str, str] = {}
        """Why it is not called otherwise."""
        if sizes.device == "cuda":
            try:
                self.calls["dense, graph"] = _recorded(self.calls["dense"])
            except Exception as error:
                self.failed["dense, graph"] = fault_of(error)
        if time.time() + _COMPILES > until:
            self.failed["dense, compiled"] = "left out, for time was short"
            return
        try:
            torch._dynamo.reset()
            compiled = torch.compile(self.block, **sizes.compile)
            for _ in range(3):  # is compiled at the first call, recorded at the second
                compiled(self.x)
            self.calls["dense, compiled"] = partial(compiled, self.x)
        except Exception as error:
            self.failed["dense, compiled"] = fault_of(error)


class Sparse:
    """The block with sparse weights, accelerated, checked against what it should give."""

    @torch.no_grad()
    def __init__(self, dense: Dense, pattern: str, device: str) -> None:
        x, block = dense.x, copy.deepcopy(dense.block)
        for weight in select(block, pattern).weights:
            weight.param.copy_(torch.where(parse(pattern).mask(weight.param, dim=weight.dim), weight.param, 0.0))
        exact, narrow, in_graph = copy.deepcopy(block).float()(x.float()), block(x), copy.deepcopy(block)
        accelerations = {"by": accelerate(block)}
        self.calls: dict[str, Call] = {pattern: partial(block, x)}
        self.failed: dict[str, str] = {}
        self.wrong = far(self.calls[pattern](), narrow, exact)  # chooses who multiplies, and compiles
        if device == "cuda":
            accelerations["by_in_graph"] = accelerate(in_graph, backend=IN_GRAPH)
            try:
                in_graph(x)  # chooses, which nobody can within a graph
                self.calls[f"{pattern}, graph"] = recorded = _recorded(partial(in_graph, x))
                if fault := far(recorded(), narrow, exact):
                    self.wrong = f"{self.wrong} in a CUDA graph: {fault}".strip()
            except Exception as error:
                self.failed[f"{pattern}, graph"] = fault_of(error)
        self.by = {
            key: {name: choices[-1].backend for name, choices in acceleration.choices.items() if choices}
            for key, acceleration in accelerations.items()
        }
        """Who multiplies, by the weights' names: called one by one, and in a graph."""


def tasks(sizes: Sizes) -> list[Task]:
    """One for each number of tokens and pattern. Those of as many tokens share their dense block."""
    held: list[Dense] = []

    def rows(tokens: int, pattern: str, until: float) -> Iterator[Row]:
        if not held or held[0].tokens != tokens:
            held[:] = []  # its memory is free before the next one is made
            held.append(Dense(tokens, sizes, until))
        yield _measured(held[0], pattern, sizes)

    return [
        Task(f"block, {tokens} tokens, {pattern}", partial(rows, tokens, pattern))
        for tokens in sizes.tokens
        for pattern in sizes.block_patterns
    ]


@torch.no_grad()
def _measured(dense: Dense, pattern: str, sizes: Sizes) -> Row:
    sparse = Sparse(dense, pattern, sizes.device)
    calls = {**dense.calls, **sparse.calls}
    times = take_turns(calls, sizes.block_seconds, clock=stopwatch(torch.device(sizes.device)))
    return _row(dense, pattern, times, sparse)


def _recorded(call: Call) -> Call:
    """Replays a CUDA graph of the call."""
    beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def _row(dense: Dense, pattern: str, times: dict[str, Timing], sparse: Sparse) -> Row:
    ours = [name for name in (pattern, f"{pattern}, graph") if name in times]
    best = min(times[name].median for name in DENSE if name in times) / min(times[name].median for name in ours)
    eager = times["dense"].median / times[pattern].median
    who = [", ".join(sorted(set(names.values()))) for names in sparse.by.values()]
    failed = {**dense.failed, **sparse.failed}
    columns = {**dict.fromkeys(DENSE), pattern: "sparse", f"{pattern}, graph": "sparse, graph"}
    remarks = [*([sparse.wrong] if sparse.wrong else []), *[f"{name}: {why}" for name, why in failed.items()]]
    cells = {
        "tokens": str(dense.tokens),
        "pattern": pattern,
        **{shown or name: microseconds(times[name]) if name in times else "-" for name, shown in columns.items()},
        "over eager": f"{eager:.2f}",
        "over best": f"{best:.2f}",
        "by": "; in a graph: ".join(who),
        "results": "; ".join(remarks) or "right",
    }
    record = {
        "tokens": dense.tokens,
        "pattern": pattern,
        "times": {name: times[name]._asdict() for name in columns if name in times},
        "over_eager": eager,
        "over_best": best,
        **sparse.by,
        "failed": failed,
    }
    return Row(cells, record, sparse.wrong)
