"""Something is done as soon as a module is imported, and nothing before."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from lightning_nm.when_loaded import _Watch, when_loaded

NAME = "a_module_of_these_tests"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that nobody has imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / f"{NAME}.py"
    file.write_text("there = True")
    yield file
    sys.modules.pop(NAME, None)
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "_module", None) != NAME]


def watches() -> int:
    return sum(isinstance(finder, _Watch) and finder._module == NAME for finder in sys.meta_path)


def test_after_the_import(module: Path) -> None:
    """Once, when the module is complete; the module is as if nobody had been there."""
    seen: list[bool] = []
    when_loaded(NAME, lambda: seen.append(sys.modules[NAME].there))
    assert not seen
    loaded = importlib.import_module(NAME)
    assert seen == [True]
    assert watches() == 0
    assert loaded.__spec__ is not None
    assert type(loaded.__loader__).__name__ == type(loaded.__spec__.loader).__name__ == "SourceFileLoader"
    importlib.reload(loaded)
    assert seen == [True]


def test_at_once_where_it_is_loaded(module: Path) -> None:
    """Nothing waits."""
    importlib.import_module(NAME)
    seen: list[int] = []
    when_loaded(NAME, lambda: seen.append(1))
    assert seen == [1]
    assert watches() == 0


def test_asking_whether_it_is_there_is_no_import(module: Path) -> None:
    """Many packages ask for optional ones; the import that follows is seen all the same."""
    seen: list[int] = []
    when_loaded(NAME, lambda: seen.append(1))
    assert find_spec(NAME) is not None
    assert not seen
    importlib.import_module(NAME)
    assert seen == [1]


def test_an_import_that_fails(module: Path) -> None:
    """Is none; the next one is seen."""
    seen: list[int] = []
    when_loaded(NAME, lambda: seen.append(1))
    module.write_text("raise OSError('broken')")
    with pytest.raises(OSError, match="broken"):
        importlib.import_module(NAME)
    assert not seen
    module.write_text("there = True  # mended")
    importlib.invalidate_caches()
    importlib.import_module(NAME)
    assert seen == [1]


def test_several_watch(module: Path) -> None:
    """Each is told."""
    seen: list[int] = []
    when_loaded(NAME, lambda: seen.append(1))
    when_loaded(NAME, lambda: seen.append(2))
    importlib.import_module(NAME)
    assert sorted(seen) == [1, 2]


def test_a_module_that_is_not_there() -> None:
    """Is not there."""
    when_loaded(NAME, lambda: None)
    try:
        with pytest.raises(ModuleNotFoundError, match=NAME):
            importlib.import_module(NAME)
    finally:
        sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "_module", None) != NAME]


@pytest.mark.parametrize("imports", ["lightning_nm, lightning", "lightning, lightning_nm"])
def test_strategies_are_registered(imports: str) -> None:
    """Whichever is imported first."""
    script = (
        f"import {imports}\nfrom lightning.pytorch.strategies import StrategyRegistry as names\n"
        "assert {'nm_sparse', 'nm_sparse_ddp', 'nm_sparse_ddp_spawn', 'nm_sparse_ddp_fork'} <= set(names)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
