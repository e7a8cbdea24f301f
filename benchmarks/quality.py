"""What a pattern costs in quality: the byte transformer trained dense and sparse, at equal budget, over seeds.

    python benchmarks/quality.py

Every run sees the same batches in the same order as the dense run of its seed. Prints validation bits per byte
(mean and standard deviation over seeds, and the mean difference from dense of the same seed). Runs are appended to
the results file as they end; a second call goes on with those that are missing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from byte_lm import ByteLM, StandardLibrary

from lightning_nm import NMSparsityCallback
from lightning_nm.callbacks.table import markdown_table

PATTERNS = ("dense", "2:4", "4:8", "4:8T", "2:4T")


def train(pattern: str, seed: int, steps: int, megabytes: float) -> float:
    """Validation bits per byte at the end of training."""
    L.seed_everything(seed, verbose=False)
    sparsity = (
        [] if pattern == "dense" else [NMSparsityCallback(pattern, ignore=["head"], log_every_n_steps=0, report=False)]
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=sparsity,  # type: ignore[arg-type]
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    model, data = ByteLM(), StandardLibrary(megabytes=megabytes)
    torch.manual_seed(seed)  # the same order of batches, whatever the callback drew
    trainer.fit(model, data)
    judge = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (measured,) = judge.validate(model, data, verbose=False)
    return measured["val/bits_per_byte"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=4.0)
    parser.add_argument("--results", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    budget = {"steps": given.steps, "megabytes": given.megabytes, "torch": torch.__version__}
    kept = json.loads(given.results.read_text()) if given.results.is_file() else {"budget": budget, "runs": {}}
    if kept["budget"] != budget:
        raise SystemExit(f"{given.results} holds runs of {kept['budget']}, not of {budget}: name another --results")
    runs: dict[str, dict[str, float]] = kept["runs"]
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    for seed in range(given.seeds):
        for pattern in PATTERNS:
            done = runs.setdefault(pattern, {})
            if str(seed) not in done:
                done[str(seed)] = train(pattern, seed, given.steps, given.megabytes)
                given.results.write_text(json.dumps(kept, indent=2) + "\n")
                print(f"{pattern}, seed {seed}: {done[str(seed)]:.4f} bits per byte", flush=True)
    rows = []
    for pattern in PATTERNS:
        values = [runs[pattern][str(seed)] for seed in range(given.seeds)]
        worse = statistics.mean(v - runs["dense"][str(seed)] for seed, v in enumerate(values))
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append((pattern, f"{statistics.mean(values):.4f} ± {spread:.4f}", f"{worse:+.4f}"))
    print(markdown_table(("pattern", "validation bits per byte", "against dense"), rows))


if __name__ == "__main__":
    main()
