"""How checkpoints are written. (What a kill leaves: tests/regimes/test_interruption.py.)"""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_nm import NMSparsityCallback
from lightning_nm.callbacks.whole_files import WholeFileIO
from tests.helpers import net, trainer


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_file_is_written_and_read_back(tmp_path, prefix):
    """Under the name that was asked for, with nothing beside it, in a folder that need not be there."""
    path = tmp_path / "new" / "last.ckpt"
    writer = WholeFileIO()
    for value in (1.0, 2.0):
        writer.save_checkpoint({"weight": torch.full((3,), value)}, f"{prefix}{path}")
        assert writer.load_checkpoint(path)["weight"].tolist() == [value] * 3
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path):
    """And nothing of its own."""
    writer = WholeFileIO()
    writer.save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="pickle"):
        writer.save_checkpoint({"a": lambda: 0}, tmp_path / "last.ckpt")
    assert writer.load_checkpoint(tmp_path / "last.ckpt") == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_other_file_systems_are_lightnings(tmp_path):
    """A path that is no local file is written as ever."""
    WholeFileIO().save_checkpoint({"a": 1}, "memory://whole/last.ckpt")
    assert WholeFileIO().load_checkpoint("memory://whole/last.ckpt") == {"a": 1}
    with pytest.raises(TypeError, match="storage_options"):
        WholeFileIO().save_checkpoint({}, tmp_path / "last.ckpt", {"key": 1})


def test_the_callback_has_its_trainer_write_so(tmp_path):
    """Unless the user brought a CheckpointIO."""

    class Mine(TorchCheckpointIO):
        pass

    for plugins, expected in (([], WholeFileIO), ([Mine()], Mine)):
        run: L.Trainer = trainer(tmp_path, NMSparsityCallback(report=False), max_epochs=1, plugins=plugins)
        run.fit(net())
        assert type(run.strategy.checkpoint_io) is expected
