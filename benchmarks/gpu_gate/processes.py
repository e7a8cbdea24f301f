"""Processes that are not waited for longer than there is time."""

from __future__ import annotations

import subprocess
from typing import Any

_DIES = 5.0
"""Seconds. What hangs in a driver may outlive its kill: then it is abandoned."""


def killed(process: subprocess.Popen[Any]) -> int | None:
    """Its exit status; None: it is still there, and nobody waits for it any longer."""
    process.kill()
    try:
        return process.wait(_DIES)
    except subprocess.TimeoutExpired:
        return None
