"""What the machine is called."""

from __future__ import annotations

import pytest
import torch

from lightning_nm.sparse import machine


def test_a_processor() -> None:
    """Name and instructions: a measurement with AVX-512 says nothing for AVX2."""
    name = machine.name(torch.device("cpu"))
    assert machine.processor() in name
    assert torch.backends.cpu.get_cpu_capability() in name


def test_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As its driver calls it."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert machine.name(torch.device("cuda:1")) == "card 1"


def test_versions() -> None:
    """What is missing is said to be."""
    assert torch.__version__.startswith(machine.installed("torch").partition("+")[0])
    assert machine.installed("no-such-package") == "not installed"
