"""`benchmarks/gpu.py`, as far as it goes without a card."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gate() -> ModuleType:
    spec = spec_from_file_location("gpu_gate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["gpu_gate"] = module  # NamedTuple looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card(tmp_path: Path) -> None:
    """It says so, writes nothing and exits with status 2."""
    command = [sys.executable, "-W", "ignore", SCRIPT, "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "no CUDA card: the GPU gate measures nothing here\n"
    assert not any(tmp_path.iterdir())


def test_what_is_measured_and_written(gate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pattern at every batch, until time is up; results that were checked; what was not reached."""
    monkeypatch.setattr(gate, "BATCHES", (1, 2))
    with torch.inference_mode():
        rows = list(gate.measured(((128, 256),), 0.0, time.monotonic() + 60, "cpu"))
        assert list(gate.measured(((128, 256),), 0.0, time.monotonic() - 1, "cpu")) == []
    assert [(row.pattern, row.batch) for row in rows] == [(p, b) for b in (1, 2) for p in gate.PATTERNS]
    assert all(not row.compared.wrong and row.compared.over("dense") for row in rows)
    rows[0].compared.wrong["gathered"] = "3 of 4 numbers are wrong"
    about = {"card": "NVIDIA H200 (pretended)", "driver": "1"}
    files = gate.write(tmp_path, about, {"a.py": "7 passed", "b.py": "FAILED\nE x"}, rows, 5)
    assert [file.name for file in files] == ["gpu-nvidia-h200-pretended.json", "gpu-nvidia-h200-pretended.md"]
    held = json.loads(files[0].read_text())
    assert held["machine"] == about
    assert held["left"] == 5
    assert {"median", "low", "high", "least", "rounds"} == held["rows"][0]["times"]["dense"].keys()
    written = files[1].read_text()
    for words in ("driver 1", "- a.py: 7 passed", "5 more products were not reached", "gathered: 3 of 4", "| right |"):
        assert words in written
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(rows)


def test_how_tests_ended(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of each file; what failed with its output; without pytest nothing is run, and that is said."""
    monkeypatch.setattr(gate, "TESTS", ("tests/sparse/test_cusparselt.py", "tests/no_such_file.py"))
    right, wrong = gate.tested().values()
    assert "deselected" in right
    assert wrong.startswith("FAILED")
    monkeypatch.setattr(gate, "find_spec", lambda name: None)
    assert set(gate.tested().values()) == {"not run: pytest is not installed"}


def test_every_file_of_gpu_tests_is_in_the_gate(gate: ModuleType) -> None:
    """None is forgotten."""
    root = SCRIPT.parents[1]
    marked = {
        str(file.relative_to(root))
        for file in (root / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in file.read_text() and file != Path(__file__)
    }
    assert marked == set(gate.TESTS)
