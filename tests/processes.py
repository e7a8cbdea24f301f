"""Scripts of the tests in several processes."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def free_port() -> int:
    """Below the range from which outgoing connections are given theirs: nobody takes it before the run does."""
    for port in random.Random().sample(range(20000, 30000), 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise RuntimeError("no free port")


def torchrun(script: str, *args: object, processes: int = 2, timeout: int = 240) -> None:
    """Run a script of the repository in a gloo group of processes; AssertionError with what they said if one fails."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, str(REPOSITORY / script), *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-8000:]
