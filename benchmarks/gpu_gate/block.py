"""A transformer block, dense and accelerated, end to end."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gpu_gate.networks import Block, random
from gpu_gate.sections import Row, Task, far, fault_of, microseconds
from gpu_gate.sizes import Sizes
from lightning_nm.patterns import parse
from lightning_nm.sparse import Acceleration, accelerate
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

Call = Callable[[], Tensor]


class Sparse(NamedTuple):
    """A block with sparse weights, accelerated, and what it should give."""

    block: nn.Module
    in_graph: nn.Module
    """The same, by what is fastest where calls cost nothing to issue."""
    acceleration: Acceleration
    exact: Tensor
    """In float32, dense."""
    dense: Tensor
    """In bfloat16, dense."""

    @classmethod
    def of(cls, dense: nn.Module, pattern: str, x: Tensor) -> Sparse:
        block = copy.deepcopy(dense)
        for weight in select(block, pattern).weights:
            weight.param.copy_(torch.where(parse(pattern).mask(weight.param, dim=weight.dim), weight.param, 0.0))
        exact, narrow, in_graph = copy.deepcopy(block).float()(x.float()), block(x), copy.deepcopy(block)
        accelerate(in_graph, backend=IN_GRAPH)
        return cls(block, in_graph, accelerate(block), exact, narrow)

    def fault(self, call: Call) -> str:
        return far(call(), self.dense, self.exact)


def tasks(sizes: Sizes) -> list[Task]:
    return [Task(f"block, {tokens} tokens", partial(_rows, tokens, sizes)) for tokens in sizes.tokens]


@torch.no_grad()
def _rows(tokens: int, sizes: Sizes, until: float) -> list[Row]:
    device = torch.device(sizes.device)
    x = random((1, tokens, sizes.block.hidden), sizes.device).bfloat16()
    torch.manual_seed(0)
    with device:
        dense = Block(sizes.block).bfloat16().eval()
    sparse = {pattern: Sparse.of(dense, pattern, x) for pattern in sizes.block_patterns}
    calls: dict[str, Call] = {"dense": partial(dense, x), **{p: partial(made.block, x) for p, made in sparse.items()}}
    # the first call chooses who multiplies, and compiles
    wrong = {pattern: made.fault(calls[pattern]) for pattern, made in sparse.items()}
    failed: dict[str, str] = {}
    for name in list(calls):
        if device.type == "cuda":
            try:
                block = sparse[name].in_graph if name in sparse else dense
                block(x)  # chooses, which nobody can within a graph
                calls[f"{name}, graph"] = recorded = _recorded(partial(block, x))
                if name in sparse and (fault := sparse[name].fault(recorded)):
                    wrong[name] = f"{wrong[name]} in a CUDA graph: {fault}".strip()
            except Exception as error:
                failed[f"{name}, graph"] = fault_of(error)
    try:
        torch._dynamo.reset()
        compiled = torch.compile(dense, **sizes.compile)
        for _ in range(3):  # is compiled at the first call, recorded at the second
            compiled(x)
        calls["dense, compiled"] = partial(compiled, x)
    except Exception as error:
        failed["dense, compiled"] = fault_of(error)
    times = take_turns(calls, sizes.block_seconds, clock=stopwatch(device))
    return [_row(tokens, pattern, times, made, wrong[pattern], failed) for pattern, made in sparse.items()]


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


def _row(tokens: int, pattern: str, times: dict[str, Timing], made: Sparse, wrong: str, failed: dict[str, str]) -> Row:
    ours = [name for name in (pattern, f"{pattern}, graph") if name in times]
    best = min(times[name].median for name in DENSE if name in times) / min(times[name].median for name in ours)
    eager = times["dense"].median / times[pattern].median
    who = {name: choices[-1].backend for name, choices in made.acceleration.choices.items() if choices}
    columns = {**dict.fromkeys(DENSE), pattern: "sparse", f"{pattern}, graph": "sparse, graph"}
    remarks = [*([wrong] if wrong else []), *[f"{name}: {why}" for name, why in failed.items() if name in columns]]
    cells = {
        "tokens": str(tokens),
        "pattern": pattern,
        **{shown or name: microseconds(times[name]) if name in times else "-" for name, shown in columns.items()},
        "over eager": f"{eager:.2f}",
        "over best": f"{best:.2f}",
        "by": ", ".join(sorted(set(who.values()))),
        "results": "; ".join(remarks) or "right",
    }
    record = {
        "tokens": tokens,
        "pattern": pattern,
        "times": {name: times[name]._asdict() for name in columns if name in times},
        "over_eager": eager,
        "over_best": best,
        "by": who,
        "failed": failed,
    }
    return Row(cells, record, wrong)
