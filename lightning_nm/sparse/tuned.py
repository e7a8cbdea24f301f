"""What `lightning-nm bench --tune` measured on this machine: who multiplies, kept on disk by machine and versions.

An entry saves the measurement at the first input, not the check: what it names is held against the dense product once
in each process.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from lightning_nm.sparse import found, machine
from lightning_nm.sparse.choice import Choice

_FILE = "tuned"


def file() -> Path:
    """Where entries lie."""
    return found.file(_FILE)


def write(choice: Choice, device: torch.device, product: Sequence[object]) -> bool:
    """Keep a choice that was measured with care, and say whether that was possible.

    Args:
        product: all that tells it from others, as words or things that have some.
    """
    entry = {"backend": choice.backend, "times": choice.times, "date": date.today().isoformat()}
    return found.write(_FILE, _key(device, product), entry)


def read(device: torch.device, product: Sequence[object], able: Sequence[str]) -> Choice | None:
    """The choice that was kept, of a backend among ``able``, or None."""
    entry = found.read(_FILE, _key(device, product))
    if not isinstance(entry, dict):
        return None
    backend, times, when = (entry.get(name) for name in ("backend", "times", "date"))
    # from a file that anybody may have written
    if backend not in able or not isinstance(times, dict) or not isinstance(when, str):
        return None
    if not all(isinstance(seconds, float) for seconds in times.values()):
        return None
    return Choice(str(backend), times, f"tuned on {when}")


def _key(device: torch.device, product: Sequence[object]) -> str:
    packages = ["lightning-nm", *(["triton"] if device.type == "cuda" else [])]
    versions = [f"torch {torch.__version__}", *(f"{package} {machine.installed(package)}" for package in packages)]
    return "; ".join([machine.name(device), *versions, *map(str, product)])
