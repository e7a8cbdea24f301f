"""Checkpoints that are whole or absent, whenever the process is killed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.strategies import Strategy


class WholeFileIO(TorchCheckpointIO):
    """Writes a local checkpoint beside its place and moves it there when it is complete.

    Lightning writes it in the folder of temporary files: where that is another file system, the move is a
    copy, and a kill in its midst leaves half a file, in the place of a good one if it had the same name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        filesystem = get_filesystem(path)
        if storage_options is not None or "file" not in filesystem.protocol:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(filesystem._strip_protocol(str(path)))
        target.parent.mkdir(parents=True, exist_ok=True)
        # always the same name, so that kills leave no more than one behind; no longer than names may be
        unfinished = target.with_name(f".{target.name[-60:]}.tmp")
        try:
            # by name: through an open file object Ctrl-C turns into other errors
            torch.save(checkpoint, str(unfinished))
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        finally:
            with suppress(FileNotFoundError):
                unfinished.unlink()


def write_whole_files(strategy: Strategy) -> None:
    """Have ``strategy`` write by `WholeFileIO`, unless the user has chosen another way than Lightning's own."""
    if type(strategy.checkpoint_io).__name__ == "TorchCheckpointIO":
        strategy.checkpoint_io = WholeFileIO()
