"""What searches found, kept on disk: a small JSON file in the user's cache folder.

It may be lost at any time, and is never trusted: whoever reads an entry checks it before he uses it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def file(name: str) -> Path:
    """``$XDG_CACHE_HOME/lightning_nm/<name>.json``, of ``~/.cache`` where that is not set."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "lightning_nm" / f"{name}.json"


def read(name: str, key: str) -> Any:
    """The entry, or None: there is none, or the file is damaged."""
    return _all(file(name)).get(key)


def write(name: str, key: str, entry: Any) -> bool:
    """Keep an entry, whole or not at all, and say which; where it is not, the next process searches again."""
    path = file(name)
    held = json.dumps({**_all(path), key: entry}, indent=1, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file_:
            file_.write(held)
        os.replace(file_.name, path)
    except OSError:
        return False
    return True


def _all(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}
