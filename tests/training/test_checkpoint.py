"""What a sparse weight saves, and what it refuses to go on with."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_nm.patterns import NM
from lightning_nm.training import SRSTE, SSTE, Frozen, Method, Selected, SparseWeight
from lightning_nm.training.checkpoint import restore_weight, weight_state
from tests.oracles import raw
from tests.training.runs import ALWAYS, noise, sparse_weight, update


@pytest.mark.parametrize("make", [SRSTE, Frozen, SSTE])
def test_state_goes_through_a_weights_only_file(make: Callable[[], Method]) -> None:
    """Saved with torch.save and read with ``weights_only``, the state continues the weight bit for bit."""
    weight = sparse_weight(noise(4, 8), make())
    update(weight, noise(4, 8, seed=1))
    file = io.BytesIO()
    torch.save(weight_state(weight), file)
    file.seek(0)
    resumed = SparseWeight(Selected("layer.weight", nn.Parameter(weight.param.detach().clone()), NM(2, 4), 1), make())
    restore_weight(resumed, torch.load(file, weights_only=True))
    with torch.no_grad():
        assert not resumed.settle(ALWAYS)
    for seed in (2, 3):
        update(weight, noise(4, 8, seed=seed))
        update(resumed, noise(4, 8, seed=seed))
    assert torch.equal(raw(resumed.param), raw(weight.param))
    assert resumed.steps == weight.steps


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pattern": "1:4"}, "pattern 1:4.*2:4"),
        ({"dim": 0}, "dim 0.*1"),
        ({"method": "Frozen"}, "method Frozen.*SRSTE"),
        ({"hidden": torch.zeros(4, 4)}, r"\[4, 4\].*\[4, 8\]"),
        ({"mask": torch.zeros(3, dtype=torch.uint8)}, r"\(4, 8\) takes 4 bytes"),
        ({"mask": torch.zeros(4, dtype=torch.int64)}, "int64"),
    ],
    ids=["pattern", "dim", "method", "hidden shape", "mask size", "mask dtype"],
)
def test_state_of_another_run_is_refused(change: dict[str, Any], named: str) -> None:
    """What does not belong here is refused with the weight's name and what differs (promise 7)."""
    weight = sparse_weight(noise(4, 8))
    with pytest.raises(ValueError, match=rf"layer\.weight: .*{named}"):
        restore_weight(weight, {**weight_state(weight), **change})


def test_state_of_another_shape_is_refused_without_a_hidden_part() -> None:
    """A frozen weight's state has only bits; as many bits of another shape are another model's (promise 7)."""
    state = weight_state(sparse_weight(noise(8, 4), Frozen()))
    with pytest.raises(ValueError, match=r"layer\.weight"):
        restore_weight(sparse_weight(noise(4, 8), Frozen()), state)


def test_state_without_its_hidden_part_is_refused() -> None:
    """A sparse SR-STE weight cannot go on without what its mask removed (promise 7)."""
    weight = sparse_weight(noise(4, 8))
    with pytest.raises(ValueError, match=r"layer\.weight"):
        restore_weight(weight, {**weight_state(weight), "hidden": None})
