"""Train N:M sparse networks with one Lightning callback, and run them fast.

The names below are loaded when first used: importing the package costs nothing, and importing one
room (`lightning_nm.patterns`, `lightning_nm.metrics`, `lightning_nm.training`) loads no Lightning.
Where Lightning is loaded, before or after, its Trainer knows ``strategy="nm_sparse"``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_nm.when_loaded import when_loaded

if TYPE_CHECKING:
    from lightning_nm.callbacks import NMSparsityCallback as NMSparsityCallback
    from lightning_nm.sparse import accelerate as accelerate
    from lightning_nm.training import Schedule as Schedule
    from lightning_nm.training import Sparsifier as Sparsifier
    from lightning_nm.training import select as select

__version__ = "0.1.0.dev0"

_HOMES = {
    "NMSparsityCallback": "lightning_nm.callbacks",
    "Schedule": "lightning_nm.training",
    "Sparsifier": "lightning_nm.training",
    "accelerate": "lightning_nm.sparse",
    "select": "lightning_nm.training",
}

__all__ = ["NMSparsityCallback", "Schedule", "Sparsifier", "accelerate", "select"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


when_loaded("lightning.pytorch", lambda: import_module("lightning_nm.strategies"))
