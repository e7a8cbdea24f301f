"""What an accelerated layer asks at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nm.kernels import nm_mask
from lightning_nm.sparse import accelerate, recall
from lightning_nm.sparse.dispatch import Dispatched


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the way is found anew."""
    times: list[int] = []
    original = Dispatched.multiplier

    def count(self: Dispatched, *given: Any) -> Any:
        times.append(1)
        return original(self, *given)

    monkeypatch.setattr(Dispatched, "multiplier", count)
    return times


def held(layer: nn.Module) -> nn.Module:
    """2:4, and accelerated."""
    assert isinstance(layer.weight, nn.Parameter)
    with torch.no_grad():
        layer.weight.copy_(torch.where(nm_mask(layer.weight, 2, 4, 1), layer.weight, 0.0))
    accelerate(layer, backend="cpu")
    return layer


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(16, 8), torch.randn(3, 16)),
        (nn.Linear(16, 8, bias=False), torch.randn(2, 3, 16)),
        (nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 5, 5)),
        (nn.Conv2d(16, 16, 3, padding="same"), torch.randn(16, 5, 5)),
        (nn.Conv1d(16, 16, 3, stride=2), torch.randn(2, 16, 9)),
        (nn.Conv2d(16, 16, 1).to(memory_format=torch.channels_last), torch.randn(2, 16, 5, 5)),  # type: ignore[call-overload]
    ],
)
def test_found_once(asked: list[int], layer: nn.Module, x: Tensor) -> None:
    """The second call gives what the first gave, and asks nobody."""
    held(layer)
    with torch.inference_mode():
        first = layer(x)
        second = layer(x)
        assert len(asked) == 1
        assert torch.equal(first, second)
        assert first.stride() == second.stride()
        layer(torch.cat([x, x], -1) if isinstance(layer, nn.Conv1d | nn.Conv2d) else torch.cat([x, x]))
    assert len(asked) == 2  # another size


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(2.0),
        lambda layer: layer.load_state_dict({key: 3 * value for key, value in layer.state_dict().items()}),
        lambda layer: torch.set_num_threads(2),
    ],
)
def test_what_changes_is_seen(asked: list[int], change: Callable[[nn.Module], object]) -> None:
    """Weights, and the number of threads."""
    layer, x = held(nn.Linear(16, 8)), torch.randn(3, 16)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            layer(x)
            change(layer)
            out = layer(x)
            assert len(asked) == 2
            torch.testing.assert_close(out, F.linear(x, layer.weight.clone(), layer.bias), atol=1e-5, rtol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_other_modes_are_not_recalled(asked: list[int]) -> None:
    """Autocast, gradients, vmap and forward-mode derivatives go their own way after a plain call."""
    layer, x = held(nn.Linear(16, 8)), torch.randn(3, 16)
    weight, bias = layer.weight.clone().detach(), layer.bias.detach()
    with torch.no_grad():
        layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(torch.func.vmap(layer)(x), F.linear(x, weight, bias))
        tangent = torch.func.jvp(layer, (x,), (torch.ones_like(x),))[1]
        torch.testing.assert_close(tangent, F.linear(torch.ones_like(x), weight))
    layer(x).sum().backward()
    assert layer.bias.grad is not None


def test_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of ever other sizes do not fill the memory."""
    monkeypatch.setattr(recall, "MOST", 3)
    layer = held(nn.Linear(16, 8))
    with torch.no_grad():
        for batch in range(1, 12):
            layer(torch.randn(batch, 16))
    assert len(layer.weight.dispatched.remembered) <= 3
