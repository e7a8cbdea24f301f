"""A plugin of pytest's: runs every n-th test, and writes down at once how each of them ended.

Is given to pytest as ``-p gpu_gate.share --share 0/4 --told FILE``.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", default="0/1", help="K/N: of the tests that are left, each N-th from the K-th on")
    parser.addoption("--told", type=Path, required=True, help="file that gets a JSON line for each begin and end")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Told(config.getoption("--told")))


@pytest.hookimpl(trylast=True)  # when marks have deselected theirs
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    turn, of = map(int, config.getoption("--share").split("/"))
    mine = items[turn::of]
    config.hook.pytest_deselected(items=[item for index, item in enumerate(items) if index % of != turn])
    items[:] = mine


class _Told:
    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._tell(test=nodeid, ended="running", at=time.time())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # a fixture's failure too
            self._tell(test=report.nodeid, ended=report.outcome, seconds=report.duration)

    def _tell(self, **said: Any) -> None:
        with self._file.open("a") as file:
            print(json.dumps(said), file=file)
