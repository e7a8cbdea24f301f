"""Calls as they were."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_nm.conversion.recording import record


def test_writing_in_place_changes_no_record() -> None:
    """Neither the ReLU after a layer, nor what comes before the next call."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(3, 4)
    kept = x.clone()

    def run() -> None:
        with torch.no_grad():
            model(x)
            x.zero_()

    (call,) = record([model[0]], run)
    assert torch.equal(call.args[0], kept)
    assert torch.equal(call.outputs[0], model[0](kept))


def test_doing_a_call_again_leaves_it_as_it_was() -> None:
    """A module may write into its own input."""
    module = nn.ReLU(inplace=True)
    (call,) = record([module], lambda: module(torch.tensor([-1.0, 1.0])))
    assert torch.equal(call.again()[0], torch.tensor([0.0, 1.0]))
    assert torch.equal(call.args[0], torch.tensor([-1.0, 1.0]))


def test_nested_calls_and_keywords() -> None:
    """In the order in which they end, each with its own arguments."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Tensor | int]:
            return {"sum": self.inner(x) + self.inner(shift), "count": 2}

    model, one = Outer(), torch.ones(1)
    calls = record([model, model.inner], lambda: model(one, shift=2 * one))
    assert [call.module for call in calls] == [model.inner, model.inner, model]
    assert [call.outputs for call in calls] == [[one], [2 * one], [3 * one]]
    assert (calls[2].args, calls[2].kwargs) == ((one,), {"shift": 2 * one})


def test_no_hook_is_left() -> None:
    """After an error either."""
    module = nn.Linear(2, 2)
    for shape in ((1, 2), (1, 3)):
        try:
            record([module], lambda: module(torch.ones(shape)))  # noqa: B023
        except RuntimeError:
            assert shape == (1, 3)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
