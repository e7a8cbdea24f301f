"""`lightning-nm demo`: dense and sparse side by side on real data, in under a minute."""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from lightning_nm.callbacks import NMSparsityCallback
from lightning_nm.callbacks.table import print_table
from lightning_nm.cli.digits import Digits, DigitsMLP
from lightning_nm.cli.figures import save_figures
from lightning_nm.cli.report import examine, load_checkpoint, pattern_argument
from lightning_nm.patterns import NM


def train(folder: Path, epochs: int, seed: int, sparsity: NMSparsityCallback | None) -> tuple[float, L.Trainer]:
    """Train on the digits; returns (accuracy on the test split, the trainer)."""
    L.seed_everything(seed, verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[sparsity] if sparsity else [],
        logger=CSVLogger(folder, name="sparse" if sparsity else "dense"),
        log_every_n_steps=17,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model, data = DigitsMLP(), Digits()
    trainer.fit(model, data)
    metrics = trainer.test(model, data, verbose=False)
    return metrics[0]["test/accuracy"], trainer


def main(args: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="lightning-nm demo",
        description="Train a dense and a sparse classifier of scikit-learn's bundled handwritten digits.",
    )
    parser.add_argument("--pattern", type=pattern_argument, default=NM(2, 4), help="N:M (default 2:4)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("nm_demo"), help="for logs, checkpoint and figures")
    given = parser.parse_args(args)
    if find_spec("sklearn") is None:
        raise ImportError("the demo's data need the extra 'examples': pip install 'lightning-nm[examples]'")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")

    print(f"dense, {given.epochs} epochs")
    dense, _ = train(given.folder, given.epochs, given.seed, None)
    print(f"{given.pattern}, {given.epochs} epochs")
    sparsity = NMSparsityCallback(given.pattern)
    sparse, trainer = train(given.folder, given.epochs, given.seed, sparsity)

    checkpoint = Path(trainer.log_dir or given.folder) / f"digits-{str(given.pattern).replace(':', 'of')}.ckpt"
    trainer.save_checkpoint(checkpoint)
    assert sparsity.sparsifier is not None
    rows = sparsity.topology.layer_rows(sparsity.sparsifier)
    print_table("topology by layer", sparsity.topology.LAYER_COLUMNS, rows)
    verdicts = [v for v in examine(load_checkpoint(checkpoint), None) if v.obeys is not None]
    print_table(
        "test accuracy",
        ("network", "accuracy"),
        [("dense", f"{dense:.2%}"), (given.pattern, f"{sparse:.2%}")],
    )
    print("(360 images, one seed: a point or two either way is noise)")
    obeying = sum(bool(v.obeys) for v in verdicts)
    print(f"checkpoint: {checkpoint} ({obeying} of {len(verdicts)} weights obey {given.pattern})")
    save_figures(trainer)
    print(f"check it:   lightning-nm report {checkpoint} --pattern {given.pattern}")
    return 0
