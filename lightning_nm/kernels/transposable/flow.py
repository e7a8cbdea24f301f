"""Transposable masks by min-cost flow (Hubara et al., arXiv 2102.08124), solved by OR-tools: a second opinion."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def flow(scores: Tensor, n: int, *, at_most: bool) -> Tensor:
    """The mask of largest magnitude: source -> rows -> columns -> sink, a unit of capacity for each entry.

    Costs are whole numbers, as flow solvers need them to end.

    Raises:
        ImportError: OR-tools is not installed.
    """
    try:
        from ortools.graph.python import min_cost_flow
    except ImportError as error:
        raise ImportError("solver='flow' needs OR-tools: pip install 'lightning-nm[flow]'") from error
    m = scores.shape[1]
    rows, columns, source, sink = np.arange(m), m + np.arange(m), 2 * m, 2 * m + 1
    tails = np.concatenate([np.repeat(rows, m), np.full(m, source), columns, [source]])
    heads = np.concatenate([np.tile(columns, m), rows, np.full(m, sink), [sink]])
    # the last arc carries what rows and columns may leave out
    capacities = np.concatenate([np.ones(m * m), np.full(2 * m, n), [m * n if at_most else 0]])
    masks = []
    for tile in scores.cpu():
        network = min_cost_flow.SimpleMinCostFlow()
        costs = np.concatenate([-tile.numpy().ravel(), np.zeros(2 * m + 1)])
        arcs = network.add_arcs_with_capacity_and_unit_cost(tails, heads, capacities, costs)
        network.set_node_supply(source, m * n)
        network.set_node_supply(sink, -m * n)
        status = network.solve()
        if status != network.OPTIMAL:
            raise RuntimeError(f"OR-tools found no optimal flow for a {m} x {m} tile: {status}")
        masks.append(network.flows(arcs)[: m * m].reshape(m, m) > 0)
    return torch.from_numpy(np.array(masks, np.bool_).reshape(-1, m, m)).to(scores.device)
