"""Calls of modules, kept to be done again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class Recorded(NamedTuple):
    """One call of a module."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    """The floating-point tensors among what it returned."""
    autocast: Mapping[str, tuple[bool, torch.dtype]]
    """Device type -> whether it was called under autocast, and in which dtype."""

    def like(self, other: Recorded) -> bool:
        """Whether both are of the same module, with outputs of the same shapes."""
        shapes = [[out.shape for out in call.outputs] for call in (self, other)]
        return self.module is other.module and shapes[0] == shapes[1]

    def again(self) -> list[Tensor]:
        """The outputs as the module's weights are now."""
        args, kwargs = copied((self.args, self.kwargs))
        with ExitStack() as stack:
            for device, (enabled, dtype) in self.autocast.items():
                # what it casts must not outlive a change of the weights
                stack.enter_context(torch.autocast(device, dtype, enabled, cache_enabled=False))
            return floating(self.module(*args, **kwargs))


def record(modules: Collection[nn.Module], run: Callable[[], None]) -> list[Recorded]:
    """Every call of ``modules`` that ``run`` brings about, in the order in which they end."""
    calls: list[Recorded] = []
    open_calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    # copies, as what follows may write into a tensor in place (nn.ReLU(inplace=True))
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        open_calls.append(copied((args, kwargs)))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls.append(Recorded(module, *open_calls.pop(), floating(copied(output)), _autocast()))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        run()
    return calls


def _autocast() -> dict[str, tuple[bool, torch.dtype]]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in devices}


def copied(tree: Any) -> Any:
    """Any nesting of tensors with a copy of each."""
    return pytree.tree_map_only(Tensor, torch.clone, tree)


def floating(tree: Any) -> list[Tensor]:
    """The floating-point tensors in any nesting."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
