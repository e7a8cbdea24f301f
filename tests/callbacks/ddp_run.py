"""Two gloo processes that were seeded apart; each writes what it ends with. Run by test_ddp.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning as L
import torch

from lightning_nm import NMSparsityCallback
from tests.helpers import net


def main(folder: Path) -> None:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    callback, model = NMSparsityCallback("2:4", report=False), net(seed=rank)
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        use_distributed_sampler=True,
        callbacks=[callback],
    )
    trainer.fit(model)
    assert callback.sparsifier is not None
    torch.save(
        {
            "weights": model.state_dict(),
            "hidden": {w.name: w.hidden for w in callback.sparsifier.weights},
            "history": callback.topology.history,
        },
        folder / f"rank{rank}.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
