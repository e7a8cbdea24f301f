"""Figures of a fit as files."""

from __future__ import annotations

from lightning_nm import NMSparsityCallback
from lightning_nm.cli import save_figures
from lightning_nm.training import Schedule
from tests.helpers import net, trainer

PNG = b"\x89PNG"


def test_figures_are_saved_where_asked(tmp_path, capsys):
    """Two PNG files, whose paths are printed."""
    run = trainer(tmp_path, NMSparsityCallback("2:4", report=False), max_epochs=1)
    run.fit(net())
    files = save_figures(run, tmp_path / "deep" / "folder")
    assert [f.name for f in files] == ["sad.png", "mask.png"]
    assert all(f.read_bytes().startswith(PNG) for f in files)
    assert str(files[0]) in capsys.readouterr().out


def test_no_callback_no_figures(tmp_path):
    """A dense run has nothing to draw."""
    assert save_figures(trainer(tmp_path), tmp_path) == []


def test_a_run_that_ends_dense_has_no_mask_to_draw(tmp_path):
    """The SAD curves are saved all the same."""
    run = trainer(tmp_path, NMSparsityCallback("2:4", schedule=Schedule(start=1000), report=False), max_epochs=1)
    run.fit(net())
    assert [f.name for f in save_figures(run, tmp_path)] == ["sad.png"]
