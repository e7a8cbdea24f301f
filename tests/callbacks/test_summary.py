"""What is left in loggers at the end. (What each logger makes of it: test_loggers.py.)"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_nm.callbacks.summary import log_summary, plot_mask
from lightning_nm.callbacks.topology import Topology
from lightning_nm.training import Schedule, Sparsifier, select


class Shows:
    """A logger of tables and images."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}
        self.images: list[str] = []

    def log_table(self, key: str, columns: list[str], data: list[Any], step: int) -> None:
        self.tables[key] = data

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        assert len(images) == 1
        self.images.append(key)


def summary(*, first: bool = True, picture: str | None = None, schedule: Schedule = Schedule()) -> Shows:
    torch.manual_seed(0)
    sparsifier, topology = Sparsifier(select(nn.Linear(8, 4), "2:4"), schedule=schedule), Topology()
    topology.meet(sparsifier.masks())
    shows = Shows()
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=3))
    trainer: Any = SimpleNamespace(fit_loop=loop, loggers=[shows], is_global_zero=first)
    log_summary(trainer, sparsifier, topology, "2:4", picture)
    return shows


def test_table_curves_and_mask_are_logged():
    """A row for each sparse weight, and both figures."""
    shows = summary()
    assert shows.tables["nm/layers"] == [["weight", "2:4", 16, 32, 0, 0.0, 0.0]]
    assert shows.images == ["nm/sad", "nm/mask"]


def test_only_the_first_process_logs():
    """The others take part in the counting only."""
    shows = summary(first=False)
    assert (shows.tables, shows.images) == ({}, [])


@pytest.mark.parametrize(("picture", "schedule"), [(None, Schedule(start=5)), ("weight", Schedule(start=5))])
def test_a_dense_weight_has_no_mask_to_draw(picture, schedule):
    """The curves are drawn all the same."""
    assert summary(picture=picture, schedule=schedule).images == ["nm/sad"]


def test_masks_are_named():
    """By name, or the first; an unknown name is told what there is."""
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    weights = Sparsifier(select(model, "2:4")).weights
    assert "0.weight" in plot_mask(weights, None).axes[0].get_title()
    assert "1.weight" in plot_mask(weights, "1.weight").axes[0].get_title()
    with pytest.raises(ValueError, match=r"no mask of 'two'.*0\.weight.*1\.weight"):
        plot_mask(weights, "two")
