"""What was found, as JSON and Markdown."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gpu_gate.own_tests import Ended
from gpu_gate.runner import Outcome
from gpu_gate.sections import Section
from gpu_gate.targets import TARGETS, Reached
from lightning_nm.callbacks.table import markdown_table

_NAMED = 12
"""So many of a list in the Markdown; the JSON has all."""


def machine() -> dict[str, str]:
    """What runs here, and when."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    about = {"card": card, "driver": driver, "cuda": str(torch.version.cuda)}
    about["cusparselt"] = str(torch.backends.cusparselt.version() if torch.cuda.is_available() else None)
    for package in ("torch", "triton", "lightning", "torchmetrics"):
        try:
            about[package] = version(package)
        except PackageNotFoundError:
            about[package] = "not installed"
    about["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return about


def reached(outcomes: Mapping[str, Outcome]) -> list[Reached]:
    """Every target, and how far it was reached."""
    records = {name: [{**row.record, "fault": row.fault} for row in outcome.rows] for name, outcome in outcomes.items()}
    return [target.reached(records) for target in TARGETS]


def write(
    folder: Path,
    about: Mapping[str, str],
    tests: Mapping[str, Ended],
    broken: Sequence[str],
    sections: Sequence[Section],
    outcomes: Mapping[str, Outcome],
    seconds: float,
) -> list[Path]:
    """The JSON and the Markdown file, over those that were written when less was known.

    Args:
        broken: what broke down when kernels were compiled beforehand.
    """
    name = re.sub(r"[^a-z0-9]+", "-", about["card"].lower()).strip("-")
    files = [folder / f"gpu-{name}.{kind}" for kind in ("json", "md")]
    targets = reached(outcomes)
    held = {
        "machine": dict(about),
        "seconds": seconds,
        "targets": [target._asdict() for target in targets],
        "tests": {file: ended._asdict() for file, ended in tests.items()},
        "compile": list(broken),
        "sections": {
            name: {
                "seconds": outcome.seconds,
                "rows": [{**row.record, "fault": row.fault} for row in outcome.rows],
                "left": outcome.left,
            }
            for name, outcome in outcomes.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    files[0].write_text(json.dumps(held, indent=1) + "\n")
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    parts = [
        f"# {about['card']}\n\n{words}; {seconds:.0f} s in all",
        "## Targets\n\n" + markdown_table(["target", "asked", "measured", "met"], [t.cells() for t in targets]),
        *[told(section, outcomes[section.name]) for section in sections if section.name in outcomes],
        f"## Compiled beforehand\n\nWhat broke down: {_named(broken, '; ')}." if broken else "",
        "## Tests\n\n" + "\n".join(f"- {file}: {ended.said}" for file, ended in tests.items()) if tests else "",
    ]
    files[1].write_text("\n\n".join(part for part in parts if part) + "\n")
    return files


def told(section: Section, outcome: Outcome) -> str:
    """A section in Markdown."""
    columns = list(dict.fromkeys(column for row in outcome.rows for column in row.cells))
    columns = [*[column for column in columns if column != "results"], *(["results"] if "results" in columns else [])]
    table = [[_cell(row.cells.get(column, "-")) for column in columns] for row in outcome.rows]
    parts = [
        f"## {section.title}",
        section.reading,
        markdown_table(columns, table) if table else "Nothing was reached.",
        f"Not reached in time: {_named(outcome.left)}." if outcome.left else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _named(things: Sequence[str], between: str = ", ") -> str:
    return between.join(things[:_NAMED]) + (f" and {len(things) - _NAMED} more" if len(things) > _NAMED else "")


def _cell(said: str) -> str:
    return said.replace("|", "/").replace("\n", " ")
