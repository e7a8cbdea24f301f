"""Figures of a finished fit, as files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer

from lightning_nm.callbacks import NMSparsityCallback


def save_figures(trainer: Trainer, folder: str | Path | None = None) -> list[Path]:
    """Save the SAD curves, and a mask picture if a weight is sparse, of the callback in ``trainer``; say where.

    Args:
        folder: None: where the trainer's logs are.

    Returns:
        The PNG files (needs matplotlib), none where the trainer has no such callback.
    """
    folder = Path(folder or trainer.log_dir or trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, NMSparsityCallback):
            figures = {"sad": callback.plot_sad()}
            if callback.sparsifier is not None and callback.sparsifier.masks():
                figures["mask"] = callback.plot_mask()
            for name, figure in figures.items():
                files.append(folder / f"{name}.png")
                figure.savefig(files[-1], dpi=120)
    if files:
        print("figures: " + ", ".join(map(str, files)))
    return files
