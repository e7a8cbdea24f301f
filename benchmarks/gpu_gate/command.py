"""`lightning-nm bench` itself, on this card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gpu_gate.sections import OutOfTime, Row, Task
from gpu_gate.sizes import Sizes

ROOT = Path(__file__).resolve().parents[2]
READING = (
    "The command as a user calls it; exit status 0: each of its results is right. The other tables are by its core."
)


def tasks(sizes: Sizes) -> list[Task]:
    return [Task("lightning-nm bench", partial(_rows, sizes))]


def _rows(sizes: Sizes, until: float) -> Iterator[Row]:
    command = [sys.executable, "-m", "lightning_nm.cli.main", "bench", *sizes.bench]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [*command, "--output", folder],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=max(1.0, until - time.time()),
            )
        except subprocess.TimeoutExpired as error:
            raise OutOfTime from error
        written = Path(folder) / "bench.json"
        held = json.loads(written.read_text()) if written.is_file() else None
    last = (done.stdout.strip() or "no output").splitlines()[-1]
    fault = "" if done.returncode == 0 else f"exit status {done.returncode}: {last} {done.stderr.strip()[-300:]}"
    cells = {"command": "lightning-nm bench " + " ".join(sizes.bench), "said": last, "results": fault or "right"}
    yield Row(cells, {"command": cells["command"], "status": done.returncode, "said": last, "bench": held}, fault)
