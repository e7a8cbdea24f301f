"""Train an N:M sparse classifier of handwritten digits, configured from the command line.

    python examples/digits.py fit --nm.pattern 1:4 --model.hidden 256
    python examples/digits.py test --ckpt_path CHECKPOINT

`lightning_nm.cli.digits` holds the model and the data: plain Lightning, with nothing about sparsity in it.
"""

from __future__ import annotations

from lightning_nm.cli import NMCLI, save_figures
from lightning_nm.cli.digits import Digits, DigitsMLP

if __name__ == "__main__":
    cli = NMCLI(
        DigitsMLP,
        Digits,
        trainer_defaults={"max_epochs": 30, "log_every_n_steps": 17, "accelerator": "cpu"},
        seed_everything_default=0,
    )
    if cli.subcommand == "fit":
        save_figures(cli.trainer)
