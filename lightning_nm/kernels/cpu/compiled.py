"""Functions that numba compiles once per machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at first use and keep the code on disk, or for this process where there is no place to write.

    What it calls must lie in the same file: numba looks for changes in that one only.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(nogil=True)(function)
