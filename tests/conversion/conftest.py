"""`Own` is a known layer type while these tests run."""

from __future__ import annotations

import pytest

from lightning_nm.training import layers, register_layer
from tests.conversion.networks import Own


@pytest.fixture(autouse=True)
def own_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_RULES", list(layers._RULES))
    register_layer(Own, dim=0)
