"""The `lightning-nm` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

USAGE = """\
usage: lightning-nm COMMAND ...

  fit, validate, test, predict   run any LightningModule N:M sparse, as LightningCLI does:
                                   lightning-nm fit --model my.Net --data my.Data --nm.pattern 2:4
  report FILE.ckpt               say layer by layer whether a checkpoint obeys its pattern
  convert FILE.ckpt              make a trained model N:M sparse without training it anew:
                                   lightning-nm convert old.ckpt --model my.Net --data my.Data --pattern 2:4 -o new.ckpt
  bench FILE.ckpt                time its sparse weights on this machine, against dense ones, and check the results:
                                   lightning-nm bench --shape 4096 4096 --pattern 2:4 1:4 --batch 1 32
  demo                           train dense and sparse on handwritten digits, in under a minute

'lightning-nm COMMAND --help' shows the options of a command.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status (2: it could not be carried out)."""
    given = list(sys.argv[1:] if args is None else args)
    command = given[0] if given else "--help"
    if command in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if command == "--version":
        from lightning_nm import __version__

        print(f"lightning-nm {__version__}")
        return 0
    if command in ("report", "convert", "bench", "demo"):
        try:
            return _own(command)(given[1:])
        except (ValueError, OSError, ImportError) as error:
            print(f"lightning-nm {command}: {error}", file=sys.stderr)
            return 2
    # models of the user's are imported from the current folder, as `python -m` would
    sys.path.insert(0, os.getcwd())
    from lightning_nm.cli.lightning_cli import NMCLI

    NMCLI(args=None if args is None else given)
    return 0


def _own(command: str) -> Callable[[Sequence[str]], int]:
    from lightning_nm.cli import bench, convert, demo, report

    return {"report": report.main, "convert": convert.main, "bench": bench.main, "demo": demo.main}[command]


if __name__ == "__main__":
    sys.exit(main())
