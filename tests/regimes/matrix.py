"""The support matrix: which training regimes are right and which are refused, by the tests that show it.

A test says which rows it stands for; the README's table is written from these, and a test holds the two
against each other:

    python -m tests.regimes.matrix --write
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "README.md"
_TABLE = re.compile(r"(<!-- support matrix[^>]*-->\n).*?(<!-- end of the support matrix -->)", re.DOTALL)

AREAS = (
    "Patterns",
    "Optimization",
    "Precision",
    "Clipping",
    "Optimizers",
    "Parameters",
    "Parallelism",
    "Compilation",
    "Averaging",
    "Sparse evaluation",
    "Sparse training",
    "Callbacks",
    "Entry points",
    "Interruption",
    "Without a Trainer",
)

Test = TypeVar("Test", bound=Callable[..., Any])


class Row(NamedTuple):
    """One regime."""

    area: str
    regime: str
    message: str = ""
    """How it is refused; "" where it is supported."""


def supported(area: str, *regimes: str, note: str = "") -> Callable[[Test], Test]:
    """The test shows that these regimes leave lambda, masks and sparsity exactly right."""

    def mark(test: Test) -> Test:
        return _mark(test, [Row(area, f"{regime} ({note})" if note else regime) for regime in regimes])

    return mark


def refused(area: str, regime: str, message: str, error: type[Exception] = ValueError) -> Callable[[Test], Test]:
    """The test's body must raise ``error`` with ``message`` in it."""

    def mark(test: Test) -> Test:
        @functools.wraps(test)
        def raising(*args: Any, **kwargs: Any) -> None:
            with pytest.raises(error, match=re.escape(message)):
                test(*args, **kwargs)

        return _mark(raising, [Row(area, regime, message)])  # type: ignore[return-value]

    return mark


def _mark(test: Test, rows: list[Row]) -> Test:
    for row in rows:
        assert row.area in AREAS, f"{row.area} is no area of the support matrix"
    test.rows = [*getattr(test, "rows", []), *rows]  # type: ignore[attr-defined]
    return test


def rows() -> list[Row]:
    """Every row, by area, in the order of the tests; a row that several tests stand for comes once."""
    found: dict[Row, None] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "regimes.matrix import" not in path.read_text():
            continue
        module = importlib.import_module(".".join(path.relative_to(TESTS.parent).with_suffix("").parts))
        for thing in vars(module).values():
            if getattr(thing, "__module__", None) == module.__name__:
                found.update(dict.fromkeys(getattr(thing, "rows", [])))
    return sorted(found, key=lambda row: AREAS.index(row.area))


def table() -> str:
    """The matrix in Markdown: a line for each area, and one for each refusal."""
    found = rows()
    lines = ["| | right in each of these |", "|---|---|"]
    for area in AREAS:
        regimes = [row.regime for row in found if row.area == area and not row.message]
        if regimes:
            lines.append(f"| {area} | {' · '.join(regimes)} |")
    lines += ["", "| refused | with the message |", "|---|---|"]
    lines += [f"| {row.regime} | {row.message} |" for row in found if row.message]
    return "\n".join(lines) + "\n"


def in_readme() -> str:
    """The README with its table as it should be."""
    text = README.read_text()
    assert _TABLE.search(text), "the README has no place for the support matrix"
    return _TABLE.sub(lambda match: match[1] + table() + match[2], text)


if __name__ == "__main__":
    if "--write" in sys.argv:
        README.write_text(in_readme())
    else:
        print(table())
