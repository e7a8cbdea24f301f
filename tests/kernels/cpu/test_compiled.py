"""Compiled once per machine, or once per process where nothing can be written."""

from __future__ import annotations

import pytest

pytest.importorskip("numba")

from numba.core import caching

from lightning_nm.kernels.cpu.compiled import compiled


def double(x: int) -> int:
    return 2 * x


def test_code_is_kept_on_disk() -> None:
    """The second process need not wait."""
    assert compiled(double)(21) == 42
    assert compiled(double)._cache.cache_path


def test_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only installation without a home still computes."""
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert compiled(double)(21) == 42
