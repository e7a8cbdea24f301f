"""Layers of activation checkpoints: in the backward pass they are to run as they did in the forward one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_HOOKS = ("_checkpoint_hook", "_recomputation_hook")
"""Classes in torch.utils.checkpoint that catch what is saved for the backward pass, at the first run and the second."""

_alike: ContextVar[bool] = ContextVar("both runs are alike", default=False)


@contextmanager
def both_runs_alike() -> Iterator[None]:
    """Around each run, by whoever sees to it that they are."""
    before = _alike.set(True)
    try:
        yield
    finally:
        _alike.reset(before)


def may_differ() -> bool:
    """Whether this is a run within ``checkpoint(..., use_reentrant=False)``, and nobody says that both are alike.

    torch compares the tensors that both save and raises CheckpointError where they differ. The way to know is private
    to torch: without it, nothing is known.
    """
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    hooks = None if top is None or _alike.get() else top(True)
    return hooks is not None and getattr(hooks[0], "__qualname__", "").startswith(_HOOKS)
