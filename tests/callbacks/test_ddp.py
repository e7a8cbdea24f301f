"""Two processes: the masks of one network."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from lightning_nm.patterns import NM
from tests.helpers import SELECTED


def free_port() -> int:
    """Below the range from which outgoing connections are given theirs: nobody takes it before the run does."""
    for port in random.Random().sample(range(20000, 30000), 50):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise RuntimeError("no free port")


def test_ranks_that_were_seeded_apart_train_one_network(tmp_path):
    """Promise 4: as DDP broadcasts the weights of rank 0, masks, hidden parts and SAD are rank 0's everywhere."""
    repository = Path(__file__).parents[2]
    script = [sys.executable, "-W", "ignore", str(repository / "tests/callbacks/ddp_run.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(repository), "MASTER_PORT": str(free_port())}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    zero, one = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in zero["weights"]:
        assert torch.equal(zero["weights"][name], one["weights"][name]), name
    for name in SELECTED:
        assert torch.equal(zero["hidden"][name], one["hidden"][name]), name
        assert zero["hidden"][name].count_nonzero() > 0
        assert NM(2, 4).violations(zero["weights"][name]) == 0
    assert zero["history"] == one["history"]
