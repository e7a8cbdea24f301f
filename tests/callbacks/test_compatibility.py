"""What is refused, and what is said, before training."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from lightning_nm.callbacks import compatibility
from lightning_nm.training import Sparsifier, select


def test_a_slow_fallback_is_said(monkeypatch):
    """Without numba the masks are found more slowly, and the user is told."""
    trainer = L.Trainer(accelerator="cpu", logger=False)
    assert compatibility.cautions(trainer) == []
    monkeypatch.setattr(compatibility, "compiled_cpu", lambda: None)
    assert "numba does not import" in compatibility.cautions(trainer)[0]


def test_spawned_processes_are_cautioned_of():
    """Of what they hold only the weights come back."""
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False)
    assert "resume from a checkpoint" in compatibility.cautions(trainer)[0]


def test_weights_that_move_by_themselves_are_refused():
    """An update that no optimizer hook announces would pass by masks and lambda."""
    model = nn.Linear(8, 4)
    sparsifier = Sparsifier(select(model, "2:4"))
    compatibility.require_followed(sparsifier)
    with torch.no_grad():
        model.weight.add_(1)
    with pytest.raises(RuntimeError, match=r"\['weight'\] were updated"):
        compatibility.require_followed(sparsifier)
