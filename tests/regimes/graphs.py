"""What torch.compile makes of a run: how many graphs, how many breaks, and which weights the graphs are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.utils import counters

from lightning_nm.patterns import NM
from lightning_nm.training import SparseWeight
from tests.helpers import same_bits


class Graphs:
    """A compiler backend that counts its graphs and looks at the weights that each run of one is given."""

    def __init__(self, backend: str = "eager") -> None:
        self.backend = backend
        self.compiled = self.weights = self.violations = 0
        # earlier graphs and counts are not ours
        torch._dynamo.reset()
        counters.clear()

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1
        compiled = lookup_backend(self.backend)(graph, inputs)

        def run(*args: Any) -> Any:
            for arg in args:
                if isinstance(arg, nn.Parameter) and arg.dim() > 1:
                    self.weights += 1
                    self.violations += NM(2, 4).violations(arg)
            return compiled(*args)

        return run


class Run:
    """A run that has just ended."""

    def __init__(self, model: nn.Module, weights: Sequence[SparseWeight], graphs: Graphs) -> None:
        self.model = model
        self.hidden = {weight.name: weight.hidden for weight in weights if weight.hidden is not None}
        self.graphs = graphs
        self.breaks = sum(counters["graph_break"].values())

    def assert_sparse(self) -> None:
        """Every run of every graph was given sparse weights."""
        assert self.graphs.weights > 12
        assert self.graphs.violations == 0

    def assert_is(self, other: Run) -> None:
        """Weights and hidden parts agree bit for bit."""
        mine, theirs = ([*run.model.parameters(), *run.hidden.values()] for run in (self, other))
        assert len(mine) == len(theirs)
        assert all(same_bits(one, another) for one, another in zip(mine, theirs))

    def assert_near(self, other: Run) -> None:
        """To rounding, which a compiled update may do otherwise: torch 2.9's does, dense or not."""
        mine, theirs = ([*run.model.parameters(), *run.hidden.values()] for run in (self, other))
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
