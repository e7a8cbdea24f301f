"""Tables for people: through rich where it is installed, plain text elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

Row = Sequence[object]


def plain_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Columns aligned by spaces."""
    lines = [list(columns), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def markdown_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    if find_spec("rich") is None:
        print(f"{title}\n{plain_table(columns, rows)}", flush=True)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
    console = Console()
    if not console.is_terminal:
        # a log file has no width to wrap at
        console = Console(width=Console(width=10_000).measure(table).maximum)
    console.print(table, markup=False)
