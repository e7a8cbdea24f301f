"""When weights are sparse, when masks move, and how strong the decay is: as numbers, then in training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lightning_nm.training import SRSTE, Schedule, SparseWeight, Sparsifier, select
from tests.oracles import raw
from tests.training.runs import dense_after_updates, master, mlp, most_kept, one_step, step_by_decay_alone


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def sparsified(schedule: Schedule, decay: float = 2e-2) -> tuple[nn.Module, torch.optim.SGD, Sparsifier]:
    model = mlp()
    return model, sgd(model), Sparsifier(select(model, "2:4"), SRSTE(decay), schedule)


def bits(weight: SparseWeight) -> list[int]:
    assert weight.mask is not None
    return weight.mask.bits.tolist()


def test_sparse_between_start_and_dense_from() -> None:
    """``start`` is the first sparse step, ``dense_from`` the first one after."""
    schedule = Schedule(start=2, dense_from=5)
    assert [schedule.sparse(step) for step in range(7)] == [False, False, True, True, True, False, False]


def test_over_from_dense_from_on() -> None:
    """Before ``start`` nothing is over yet."""
    schedule = Schedule(start=2, dense_from=5)
    assert [schedule.over(step) for step in range(7)] == [False] * 5 + [True] * 2


def test_refreshes_count_from_start() -> None:
    """Masks move every ``refresh`` steps, counted from ``start``, up to and including ``freeze``."""
    schedule = Schedule(start=2, refresh=3, freeze=8)
    assert [step for step in range(2, 20) if schedule.refreshes(step)] == [2, 5, 8]


def test_strength_ramps_from_start() -> None:
    """The decay rises linearly from 0 at ``start`` and stays at 1."""
    schedule = Schedule(start=2, ramp=4)
    assert [schedule.strength(step) for step in range(2, 9)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_strength_without_ramp_is_full() -> None:
    """No ramp, no weaker first step."""
    assert Schedule().strength(0) == 1.0


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"start": -1}, "start"),
        ({"ramp": -1}, "ramp"),
        ({"refresh": 0}, "refresh"),
        ({"refresh": -3}, "refresh"),
        ({"freeze": -1}, "freeze"),
        ({"start": 5, "freeze": 4}, "freeze"),
        ({"dense_from": 0}, "dense_from"),
        ({"start": 5, "dense_from": 5}, "dense_from"),
    ],
)
def test_senseless_numbers_are_refused_by_name(wrong: dict[str, Any], field: str) -> None:
    """Bad input gets a ValueError that names the cause (promise 7)."""
    with pytest.raises(ValueError, match=rf"{field}={wrong[field]}"):
        Schedule(**wrong)


def test_dense_training_before_start_is_untouched() -> None:
    """Up to ``start`` the run is the dense run, bit for bit."""
    model, optimizer, sparsifier = sparsified(Schedule(start=3))
    plain = mlp()
    plain_optimizer = sgd(plain)
    with sparsifier:
        for step in range(2):
            one_step(model, optimizer, step)
            one_step(plain, plain_optimizer, step)
    assert all(torch.equal(raw(p), raw(q)) for p, q in zip(model.parameters(), plain.parameters()))


def test_sparse_from_exactly_start() -> None:
    """Weights become sparse after step number ``start``, not one earlier or later."""
    model, optimizer, sparsifier = sparsified(Schedule(start=3))
    densest = [most_kept(model[0].weight, 4)]
    with sparsifier:
        for step in range(4):
            one_step(model, optimizer, step)
            densest.append(most_kept(model[0].weight, 4))
    assert densest == [4, 4, 4, 2, 2]


def test_masks_move_only_at_refreshes() -> None:
    """Between two refreshes no entry of a mask changes."""
    model, optimizer, sparsifier = sparsified(Schedule(start=1, refresh=3))
    moved = []
    with sparsifier:
        one_step(model, optimizer)
        for step in range(2, 12):
            before = bits(sparsifier.weights[0])
            one_step(model, optimizer, step)
            if bits(sparsifier.weights[0]) != before:
                moved.append(step)
    assert moved == [4, 7, 10]


def test_hidden_learns_between_refreshes() -> None:
    """A mask that stays does not keep the hidden part from its gradient."""
    model, optimizer, sparsifier = sparsified(Schedule(refresh=100), decay=0.0)
    [weight, _] = sparsifier.weights
    with sparsifier, dense_after_updates(optimizer, weight.param) as dense:
        for step in range(3):
            hidden = weight.hidden.clone()
            one_step(model, optimizer, step)
            masked = ~weight.mask.unpack()
            assert (weight.hidden != hidden)[masked].all()
            assert torch.equal(raw(master(weight)), raw(dense[-1]))


def test_masks_stop_at_freeze() -> None:
    """The last mask that can move is that of step ``freeze``."""
    model, optimizer, sparsifier = sparsified(Schedule(freeze=4))
    moved = []
    with sparsifier:
        for step in range(1, 10):
            before = [bits(w) for w in sparsifier.weights]
            one_step(model, optimizer, step)
            if [bits(w) for w in sparsifier.weights] != before:
                moved.append(step)
    assert moved == [1, 2, 3, 4]


def test_dense_from_hands_the_hidden_part_back() -> None:
    """At ``dense_from`` the weight is the dense master, bit for bit, and nothing is kept beside it."""
    model, optimizer, sparsifier = sparsified(Schedule(dense_from=3))
    weight = sparsifier.weights[0]
    with sparsifier, dense_after_updates(optimizer, weight.param) as dense:
        for step in range(3):
            one_step(model, optimizer, step)
    assert torch.equal(raw(weight.param), raw(dense[-1]))
    assert most_kept(weight.param, 4) == 4
    assert (weight.mask, weight.hidden, sparsifier.masks()) == (None, None, {})


def test_after_dense_from_training_is_dense_training() -> None:
    """The dense tail is plain training with the same optimizer state."""
    model, optimizer, sparsifier = sparsified(Schedule(dense_from=3))
    with sparsifier:
        for step in range(3):
            one_step(model, optimizer, step)
        plain = copy.deepcopy(model)
        plain_optimizer = sgd(plain)
        plain_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for step in range(3, 6):
            one_step(model, optimizer, step)
            one_step(plain, plain_optimizer, step)
    assert all(torch.equal(raw(p), raw(q)) for p, q in zip(model.parameters(), plain.parameters()))


def test_the_decay_follows_the_ramp() -> None:
    """Lambda rises from 0 over ``ramp`` steps, counted from ``start``."""
    model = mlp()
    sparsifier = Sparsifier(select(model, "2:4"), SRSTE(decay=0.5), Schedule(start=1, ramp=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    effective = []
    with sparsifier:
        step_by_decay_alone(model, optimizer)
        for _ in range(6):
            [weight, _] = sparsifier.weights
            masked = ~weight.mask.unpack()
            before = weight.hidden[masked]
            step_by_decay_alone(model, optimizer)
            effective.append(float((1 - weight.hidden[masked] / before).mean()) / 0.1)
    assert effective == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5, 0.5], abs=1e-5)


@pytest.mark.parametrize("field", ["start", "refresh", "ramp", "freeze", "dense_from"])
def test_steps_are_whole_numbers(field: str) -> None:
    """A fraction of a step, or a fraction of the run, is refused by name."""
    with pytest.raises(ValueError, match=f"{field}=2.5"):
        Schedule(**{field: 2.5})
