"""Code that torch.compile leaves as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run as it is, where an optimizer's step is compiled: torch.compile calls our hooks, and would trace them."""
    # not as a decorator: that would import the compiler with this module
    as_it_is: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return as_it_is
