"""How the drift is measured, against masks recomputed by hand."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_nm.callbacks.topology import Topology
from lightning_nm.training import Schedule, Sparsifier, select


def runs(steps: int, schedule: Schedule = Schedule()):
    """(sparsifier, topology, step function that returns the unpacked mask)."""
    torch.manual_seed(0)
    model = nn.Linear(32, 16)
    sparsifier, topology = Sparsifier(select(model, "2:4"), schedule=schedule), Topology()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    sparsifier.attach()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        (model(torch.randn(8, 32)) - 1).square().sum().backward()
        optimizer.step()
        topology.meet(sparsifier.masks())
        return (model.weight != 0).detach()

    return sparsifier, topology, step


@pytest.fixture
def drift():
    sparsifier, topology, step = runs(8)
    yield sparsifier, topology, step
    sparsifier.detach()


def test_numbers_equal_masks_compared_by_hand(drift):
    """Flips are means over the steps since the last measurement; SAD compares two moments only."""
    sparsifier, topology, step = drift
    topology.meet(sparsifier.masks())
    masks = [sparsifier.masks()["weight"].unpack()] + [step() for _ in range(4)]
    topology.begin_epoch(1, sparsifier.masks())
    masks += [step() for _ in range(2)]
    values = topology.measure(sparsifier)
    flips = sum(int((a ^ b).sum()) for a, b in pairwise(masks))
    assert values["flips"] == pytest.approx(flips / 6)
    assert values["flip_rate"] == pytest.approx(flips / 6 / 512)
    assert values["sad_start"] == int((masks[0] ^ masks[-1]).sum())
    assert values["sad_epoch"] == int((masks[4] ^ masks[-1]).sum())
    assert topology.history == [[6, values["flip_rate"], values["sad_epoch_fraction"], values["sad_start_fraction"]]]
    (row,) = topology.layer_rows(sparsifier)
    assert row[2:5] == (256, 512, values["sad_start"])


def test_measuring_again_starts_from_zero_flips(drift):
    """Each flip is counted in one measurement."""
    sparsifier, topology, step = drift
    step()
    topology.measure(sparsifier)
    before = sparsifier.masks()["weight"].unpack()
    after = step()
    assert topology.measure(sparsifier)["flips"] == int((before ^ after).sum())


def test_weights_that_become_sparse_later_count_from_then():
    """With a late start the reference is the first mask."""
    sparsifier, topology, step = runs(8, Schedule(start=3))
    step()
    assert topology.measure(sparsifier) == {}
    step()
    first = step()
    last = step()
    assert topology.measure(sparsifier)["sad_start"] == int((first ^ last).sum())
    sparsifier.detach()


def test_state_continues_the_history(drift):
    """A restored topology measures on as the one it was saved from."""
    sparsifier, topology, step = drift
    topology.meet(sparsifier.masks())
    step()
    topology.measure(sparsifier)
    state = copy.deepcopy(topology.state_dict(sparsifier))
    restored = Topology()
    restored.load_state_dict(state, sparsifier)
    before = copy.deepcopy(sparsifier.weights[0].tally.flips)
    step()
    flips = sparsifier.weights[0].tally.flips
    assert before == 0
    expected = topology.measure(sparsifier)
    sparsifier.weights[0].tally.flips = flips
    assert restored.measure(sparsifier) == expected
    assert restored.history == topology.history
