"""One unit's sparse weights fitted to dense outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_nm.conversion.recording import Recorded
from lightning_nm.conversion.units import Unit


@dataclass(frozen=True)
class Fit:
    """How a unit is fitted: the settings of `adaprune`."""

    iterations: int
    lr: float
    bias_lr: float
    seed: int


class Outcome(NamedTuple):
    """Squared difference to the dense outputs as a share of these outputs' squares."""

    masked: float | None
    """Before the fit; None: could not be measured."""
    fitted: float | None
    remark: str = ""


def reconstruct(
    unit: Unit, masks: Mapping[str, Tensor], calls: Sequence[Recorded], fit: Fit, tick: Callable[[Tensor], None]
) -> Outcome:
    """Minimise the squared difference of the unit's outputs to the dense ones, over kept weights and biases.

    Each iteration takes one call, in shuffled order. The weights obey the masks at every moment. If it is broken off,
    or did not lower the error, they are as they were before.

    Args:
        unit: masked.
        masks: weight name -> mask.
        calls: inputs, with the dense network's outputs.
        fit: the settings.
        tick: called after every iteration with the error of its call.

    Returns:
        The errors over all calls, and why there was no fit, if so.
    """
    energy = sum(_squares(call.outputs) for call in calls)
    if not 0 < energy < math.inf:
        return Outcome(None, None, "its dense output is zero, infinite or no floating-point tensor: masked only")
    before = _error(calls, energy)
    old = [param.detach().clone() for param in unit.params]
    after = math.nan
    try:
        with _differentiable(unit):
            moved = _adam(unit, masks, calls, energy, fit, tick)
        after = _error(calls, energy)
    finally:
        if not after < before:
            write(unit.params, old)
    if not moved:
        return Outcome(before, before, "no output depends on it: masked only")
    if not after < before:
        return Outcome(before, before, "reconstruction did not lower the error: masked only")
    return Outcome(before, after)


def _adam(
    unit: Unit,
    masks: Mapping[str, Tensor],
    calls: Sequence[Recorded],
    energy: float,
    fit: Fit,
    tick: Callable[[Tensor], None],
) -> bool:
    """Returns whether the outputs depend on a weight at all."""
    weights = [weight.param for weight in unit.weights]
    kept = [masks[weight.name] for weight in unit.weights]
    # masters, in which updates smaller than a half-precision weight's last bit add up
    masters = [_wide(param.detach()).clone() for param in unit.params]
    optimizer = torch.optim.Adam(
        [{"params": masters[: len(weights)], "lr": fit.lr}, {"params": masters[len(weights) :], "lr": fit.bias_lr}]
    )
    # a constant factor is nothing to Adam, but keeps half-precision gradients from vanishing
    scale = math.sqrt(sum(out.numel() for call in calls for out in call.outputs) * len(calls)) / energy
    shuffled = _shuffled(calls, fit.seed)
    moved = False
    for iteration in range(fit.iterations):
        squares = _difference(next(shuffled))
        grads = _gradients(squares * scale, unit.params)
        moved = moved or any(grad is not None for grad in grads[: len(weights)])
        if not moved:
            if iteration + 1 >= len(calls):  # each was tried
                break
            continue
        for master, grad, mask in zip_longest(masters, grads, kept):
            # what the mask removed has no gradient ever, so Adam leaves it zero
            master.grad = None if grad is None else (grad if mask is None else torch.where(mask, grad, 0.0)).to(master)
        optimizer.step()
        write(unit.params, masters)
        tick(squares.detach() * (len(calls) / energy))
    return moved


def _gradients(loss: Tensor, params: Sequence[nn.Parameter]) -> Sequence[Tensor | None]:
    """None where the loss does not depend on a parameter."""
    return torch.autograd.grad(loss, params, allow_unused=True) if loss.requires_grad else [None] * len(params)


def _shuffled(calls: Sequence[Recorded], seed: int) -> Iterator[Recorded]:
    """All calls in random order, again and again."""
    order = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(calls), generator=order).tolist():
            yield calls[index]


def _difference(call: Recorded) -> Tensor:
    pairs = zip(call.again(), call.outputs, strict=True)
    return torch.stack([(_wide(now) - _wide(dense)).square().sum() for now, dense in pairs]).sum()


@torch.no_grad()
def _error(calls: Sequence[Recorded], energy: float) -> float:
    return sum(float(_difference(call)) for call in calls) / energy


def _squares(outputs: Sequence[Tensor]) -> float:
    return sum(float(_wide(out).square().sum()) for out in outputs)


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def write(params: Iterable[nn.Parameter], values: Iterable[Tensor]) -> None:
    """Set each parameter to its value, in the parameter's dtype."""
    for param, value in zip(params, values, strict=True):
        param.copy_(value)


@contextmanager
def _differentiable(unit: Unit) -> Iterator[None]:
    """Gradients for the unit's parameters, also where they are frozen or gradients are off."""
    flags = [param.requires_grad for param in unit.params]
    recurrent = any(isinstance(module, nn.RNNBase) for above in unit.modules for module in above.modules())
    # cuDNN has no backward of recurrent layers in evaluation mode
    cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
    try:
        for param in unit.params:
            param.requires_grad_(True)
        with torch.enable_grad(), cudnn:
            yield
    finally:
        for param, flag in zip(unit.params, flags):
            param.requires_grad_(flag)
