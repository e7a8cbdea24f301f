"""Numbers, tables and figures to whatever loggers there are. Each shows what it can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lightning_nm.callbacks.table import Row, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _experiment(logger: Any) -> Any:
    return getattr(logger, "experiment", None)  # a logger need not have one


def log_numbers(loggers: Iterable[Any], values: Mapping[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(dict(values), step=step)


def log_table(loggers: Iterable[Any], key: str, columns: Sequence[str], rows: Sequence[Row], step: int) -> None:
    """A table to W&B (as such) and TensorBoard (as Markdown text)."""
    text = [[cell if isinstance(cell, (int, float)) else str(cell) for cell in row] for row in rows]
    for logger in loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(key, columns=list(columns), data=text, step=step)
        elif hasattr(_experiment(logger), "add_text"):
            logger.experiment.add_text(key, markdown_table(columns, rows), global_step=step)


def can_draw() -> bool:
    """Whether there is a matplotlib to draw with."""
    return find_spec("matplotlib") is not None


def with_figures(loggers: Iterable[Any]) -> list[Any]:
    """The loggers that can show figures; none where there is no matplotlib to draw them."""
    if not can_draw():
        return []
    return [logger for logger in loggers if hasattr(logger, "log_image") or hasattr(_experiment(logger), "add_figure")]


def log_figure(loggers: Iterable[Any], key: str, figure: Figure, step: int) -> None:
    """A figure to W&B and TensorBoard."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key, images=[figure], step=step)
        elif hasattr(_experiment(logger), "add_figure"):
            logger.experiment.add_figure(key, figure, global_step=step)
