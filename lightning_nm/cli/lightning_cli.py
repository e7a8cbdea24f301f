"""LightningCLI with the sparsity callback built in."""

from __future__ import annotations

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lightning_nm.callbacks import NMSparsityCallback


class NMCLI(LightningCLI):
    """`LightningCLI` that trains N:M sparse: every argument of `NMSparsityCallback` as ``--nm.*``.

    On the command line ``--nm.pattern 2:4``, in a YAML file ``nm: {pattern: 2:4}``, quoted or not. The
    config that LightningCLI saves beside the logs reproduces the run.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(NMSparsityCallback, "nm")
