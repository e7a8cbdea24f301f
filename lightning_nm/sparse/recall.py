"""What multiplied such inputs the last time: all that a call of an accelerated layer has to ask.

To find the way anew takes some 20 us, as long as a small layer; to look it up takes five.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lightning_nm.sparse.dispatch import Dispatched, Multiply

MOST = 256
"""Calls that are remembered of one weight."""


def recall(dispatched: Dispatched, func: Any, args: Sequence[Any]) -> Multiply | None:
    """What multiplies, if ``func(x, weight, bias, ...)`` has been called like this and nothing has changed since."""
    x = args[0]
    if type(x) is not Tensor or torch.is_grad_enabled() or x.layout != torch.strided or x.is_nested or x.is_neg():
        return None
    multiply = dispatched.remembered.get(_call(func, args))
    if multiply is None or not dispatched.unchanged() or torch.is_autocast_enabled(x.device.type):
        return None
    transformed = forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return None if transformed or traced else multiply


def remember(dispatched: Dispatched, func: Any, args: Sequence[Any], multiply: Multiply) -> None:
    """For the next call like this; ``multiply`` takes x and bias as they were given."""
    if (call := _call(func, args)) is None or torch.is_autocast_enabled(args[0].device.type):
        return
    if not all(choice.lasts for choice in dispatched.choices.values()):
        return
    if len(dispatched.remembered) >= MOST:  # inputs of ever other sizes
        dispatched.remembered.clear()
    dispatched.remembered[call] = multiply


def _call(func: Any, args: Sequence[Any]) -> Any:
    """All that a choice depends on; None where it cannot be looked up."""
    x, bias = args[0], args[2] if len(args) > 2 else None
    if not (bias is None or isinstance(bias, Tensor)) or any(isinstance(each, list) for each in args[3:]):
        return None
    vector = None if bias is None else (bias.shape, bias.dtype, bias.device)
    return func, x.shape, x.stride(), x.dtype, x.device, vector, tuple(args[3:]), torch.get_num_threads()
