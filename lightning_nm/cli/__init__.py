"""The command line: `lightning-nm`, and a LightningCLI for scripts of your own."""

from lightning_nm.cli.figures import save_figures
from lightning_nm.cli.lightning_cli import NMCLI

__all__ = ["NMCLI", "save_figures"]
