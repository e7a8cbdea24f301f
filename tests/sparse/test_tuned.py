"""Choices that were measured once, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_nm.sparse import found, machine, tuned
from lightning_nm.sparse.choice import Choice

CPU = torch.device("cpu")
PRODUCT = ("auto", torch.Size([32, 64]), "2:4")
CHOICE = Choice("cpu", {"dense": 2e-5, "cpu": 1e-5}, "the fastest", "x [1, 64]")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_what_was_kept_is_read() -> None:
    """Backend and times; the reason says that it was tuned, and when."""
    assert tuned.read(CPU, PRODUCT, ["dense", "cpu"]) is None
    tuned.write(CHOICE, CPU, PRODUCT)
    read = tuned.read(CPU, PRODUCT, ["dense", "cpu"])
    assert read is not None
    assert (read.backend, read.times) == (CHOICE.backend, CHOICE.times)
    assert read.reason.startswith("tuned on 20")
    assert tuned.file().is_file()


def test_it_holds_for_the_very_product_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for another size, processor or version, nor where the backend cannot multiply."""
    tuned.write(CHOICE, CPU, PRODUCT)
    assert tuned.read(CPU, (*PRODUCT[:2], "1:4"), ["dense", "cpu"]) is None
    assert tuned.read(CPU, PRODUCT, ["dense"]) is None
    with monkeypatch.context() as other:
        other.setattr(machine, "name", lambda device: "another")
        assert tuned.read(CPU, PRODUCT, ["dense", "cpu"]) is None
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.9")
        assert tuned.read(CPU, PRODUCT, ["dense", "cpu"]) is None


@pytest.mark.parametrize(
    "entry",
    [
        7,
        ["cpu"],
        {},
        {"backend": "cpu", "times": {}},
        {"backend": "cpu", "times": [1.0], "date": "2026-01-01"},
        {"backend": "cpu", "times": {"dense": "1"}, "date": "2026-01-01"},
        {"backend": ["cpu"], "times": {}, "date": "2026-01-01"},
        {"backend": None, "times": {}, "date": "2026-01-01"},
    ],
)
def test_a_damaged_entry_is_none(entry: Any) -> None:
    """Whoever wrote it."""
    found.write("tuned", tuned._key(CPU, PRODUCT), entry)
    assert tuned.read(CPU, PRODUCT, ["dense", "cpu"]) is None
