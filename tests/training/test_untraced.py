"""What the compiler must leave alone. (That it does: tests/regimes/test_compiled_step.py.)"""

from __future__ import annotations

import torch

from lightning_nm.training.untraced import untraced


def test_a_compiled_caller_does_not_trace_it():
    """Called from compiled code it runs in Python, and returns what it returns."""
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.compiler.is_compiling())
        return x + 1

    look_away = untraced(look)
    doubled = torch.compile(lambda x: look_away(x) * 2, backend="eager")
    assert doubled(torch.ones(2)).tolist() == [4.0, 4.0]
    assert seen == [False]
