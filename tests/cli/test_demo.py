"""The demo, end to end."""

from __future__ import annotations

import re

import pytest

from lightning_nm.cli import demo
from lightning_nm.cli.report import main as report


def test_demo_shows_what_it_promises(tmp_path, capsys):
    """Accuracy of both networks, the report, SAD by layer, figures and a checkpoint that obeys."""
    assert demo.main(["--epochs", "4", "--folder", str(tmp_path), "--pattern", "1:4"]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"\d\d\.\d\d%", out)) == 2
    assert "2,048 / 8,192" in out
    assert "SAD since start" in out
    (checkpoint,) = tmp_path.rglob("digits-1of4.ckpt")
    assert f"checkpoint: {checkpoint} (3 of 3 weights obey 1:4)" in out
    assert report([str(checkpoint), "--pattern", "1:4"]) == 0
    pictures = {path.name for path in tmp_path.rglob("*.png")}
    assert pictures == {"sad.png", "mask.png"}


def test_missing_extra_is_named(tmp_path, monkeypatch):
    """Without scikit-learn the error says what to install."""
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lightning-nm\[examples\]"):
        demo.main(["--folder", str(tmp_path)])
