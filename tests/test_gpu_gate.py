"""`benchmarks/gpu.py`, as far as it goes without a card."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_nm.cli import bench
from lightning_nm.cli.main import main

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
LATER = time.time() + 3600


@pytest.fixture(scope="module")
def gate() -> Iterator[ModuleType]:
    spec = spec_from_file_location("gpu_gate_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module, before = module_from_spec(spec), list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def sizes(gate: ModuleType) -> Any:
    return gate.SIZES["tiny"]


def section(gate: ModuleType, name: str) -> Any:
    return next(section for section in gate.SECTIONS if section.name == name)


def rows(gate: ModuleType, name: str) -> list[Any]:
    """Of a section, in this process, on the CPU."""
    found = gate.runner.events(section(gate, name).tasks(sizes(gate)), LATER, set(), "cpu")
    return [gate.Row(**event["row"]) for event in found if "row" in event]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card(gate: ModuleType, tmp_path: Path, capsys: Any) -> None:
    """It says so, writes nothing and exits with status 2."""
    assert gate.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr() == ("", "no CUDA card: the GPU gate measures nothing here\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_rehearsal(tmp_path: Path) -> None:
    """Every section by its own process, with tiny networks: all right, and written down."""
    command = [sys.executable, "-W", "ignore", SCRIPT, "--rehearse", "--no-tests", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    held = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert all(held["sections"][name]["rows"] for name in held["sections"] if name != "products")


# -- what the sections find -----------------------------------------------------------------------------


def test_products(gate: ModuleType) -> None:
    """Every pattern at every batch, checked, with all that the comparison said."""
    found = rows(gate, "more products")
    assert [(row.record["pattern"], row.record["batch"]) for row in found] == [
        (pattern, batch) for batch in sizes(gate).batches for pattern in sizes(gate).patterns
    ]
    for row in found:
        assert not row.fault
        assert row.record["over_dense"]
        assert {"median", "low", "high", "least", "rounds"} == row.record["times"]["dense"].keys()


def test_the_products_behind_targets_come_first(gate: ModuleType) -> None:
    """Each target's most telling batch before the others, none twice, and together they are all that there are."""
    card = gate.SIZES["card"]
    behind = gate.targets.behind_targets(card)
    first = [(product.pattern, product.batch) for product in behind[:7]]
    assert first == [
        ("2:4", 64),
        ("1:4", 32),
        ("1:8", 4),
        ("1:16", 1),
        ("1:4V64", 4096),
        ("1:4V128", 4096),
        ("2:4", 8192),
    ]
    assert {product.size for product in behind} == {(14336, 4096)}
    names = [task.name for each in ("products", "more products") for task in section(gate, each).tasks(card)]
    assert len(names) == len(set(names)) == len(card.weights) * len(card.patterns) * len(card.batches)


def test_kernels_are_compiled_before_anything_is_timed(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that a pattern needs, in the block and in `lightning-nm bench` (with a bias) too; but nothing measures."""
    calls: list[tuple[int, bool]] = []

    class Held:
        def __init__(self, *given: Any) -> None:
            pass

        def operand(self, name: str) -> Any:
            assert name == "cpu"
            return SimpleNamespace(linear=lambda x, bias: calls.append((len(x), bias is not None)))

    monkeypatch.setattr(gate.products, "Dispatched", Held)
    first = [gate.products.Product((128, 256), "2:4", 2)]
    assert list(gate.products.compile_kernels("2:4", first, sizes(gate))) == []
    # the block's follow the first
    assert calls == [(2, False), (1, False), (4, False), (1, True), (1, False)]


def test_a_kernel_that_cannot_be_compiled(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is named; those after it are compiled all the same."""

    def refuse(x: torch.Tensor, bias: torch.Tensor | None) -> None:
        if len(x) != 2:
            raise RuntimeError("no such\ninstruction")

    held = SimpleNamespace(operand=lambda name: SimpleNamespace(linear=refuse))
    monkeypatch.setattr(gate.products, "Dispatched", lambda *given: held)
    said = list(gate.products.compile_kernels("2:4", gate.products.every(sizes(gate)), sizes(gate)))
    assert said[0] == "128x256 2:4 batch 1, cpu: RuntimeError: no such instruction"
    assert [each.partition(", ")[0] for each in said[1:]] == [
        "32x64 2:4 batch 1",
        "32x64 2:4 batch 4",
        "128x256 2:4 batch 1 with a bias",
    ]


def test_a_wrong_product_is_a_fault(gate: ModuleType) -> None:
    """Which the exit status tells."""
    product = gate.products.Product((128, 256), "2:4", 1)
    compared = SimpleNamespace(times={}, refusals={}, wrong={"gathered": "3 of 4 numbers are wrong"}, auto=None)
    compared.over = lambda name: None
    row = gate.products.row(product, compared, ["dense", "gathered"])
    assert row.fault == row.cells["results"] == "gathered: 3 of 4 numbers are wrong"


def test_the_block(gate: ModuleType) -> None:
    """At each number of tokens, by each pattern; compiled too; held against float32."""
    found = rows(gate, "block")
    assert [(row.record["tokens"], row.record["pattern"], row.fault) for row in found] == [
        (1, "2:4", ""),
        (4, "2:4", ""),
    ]
    assert set(found[0].record["times"]) == {"dense", "dense, compiled", "2:4"}
    assert len(found[0].record["by"]) == 7
    [late] = section(gate, "block").tasks(sizes(gate))[0].rows(time.time() + 1)  # begun, with no time to compile
    assert set(late.record["times"]) == {"dense", "2:4"}
    assert (late.cells["results"], late.fault) == ("dense, compiled: left out, for time was short", "")


def test_who_multiplied_in_the_block(gate: ModuleType) -> None:
    """Is told of both ways: call by call, and in a CUDA graph."""
    dense = SimpleNamespace(tokens=1, failed={})
    by = {"by": {"query": "dense", "up": "gathered"}, "by_in_graph": {"query": "bitplane", "up": "gathered"}}
    timing = sys.modules["gpu_gate.steps"].Timing.of([1.0, 1.0])
    sparse = SimpleNamespace(failed={}, wrong="", by=by)
    row = gate.block._row(dense, "2:4", {"dense": timing, "2:4": timing}, sparse)
    assert row.cells["by"] == "dense, gathered; in a graph: bitplane, gathered"
    assert row.record["by_in_graph"] == by["by_in_graph"]


def test_the_step(gate: ModuleType) -> None:
    """Dense against itself and against masks, which hold at the end."""
    found = rows(gate, "step")
    assert [(row.record["variant"], row.fault) for row in found] == [
        (name, "") for name in ("dense", "dense again", "2:4", "2:4T")
    ]
    assert found[0].record["over_dense"] == 1.0
    assert all(row.record["times"]["rounds"] == sizes(gate).rounds for row in found)


def test_sparse_training(gate: ModuleType) -> None:
    """Gradients are checked; the products' speed stands beside what it predicts."""
    found = rows(gate, "sparse training")
    assert [row.fault for row in found] == [""] * 5
    both, forward = found[3].record, found[4].record
    assert both["predicted"] == pytest.approx(3 / (2 / both["products"] + 1))
    assert forward["predicted"] == pytest.approx(3 / (1 / forward["products"] + 2))


def test_gradients_that_are_far_off(gate: ModuleType) -> None:
    """Are told; what bfloat16 rounds is not."""
    exact = torch.randn(64, 64)
    dense = exact.bfloat16()
    far = sys.modules["gpu_gate.sections"].far
    assert far(dense, dense, exact) == far(exact, dense, exact) == ""
    assert far(dense * 1.05, dense, exact).startswith("off by")
    assert far(dense * torch.nan, dense, exact).startswith("off by")
    assert far(dense[1:], dense, exact) == "shape [63, 64], not [64, 64]"


def test_the_bench_command(gate: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Is called as a user would; its failure is a fault; what it is given on a card it understands."""
    given: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> Any:
        assert command[1:4] == ["-m", "lightning_nm.cli.main", "bench"]
        given.append(command)
        status = main(command[3:])
        return SimpleNamespace(returncode=status, stdout=capsys.readouterr().out, stderr="")

    monkeypatch.setattr(gate.command.subprocess, "run", run)
    [row] = rows(gate, "bench")
    assert (row.fault, row.record["status"]) == ("", 0)
    assert len(row.record["bench"]["rows"]) == 1
    monkeypatch.setattr(bench, "main", lambda args: 1)
    [row] = rows(gate, "bench")
    assert row.fault.startswith("exit status 1")

    def late(command: list[str], **kwargs: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 1.0)

    monkeypatch.setattr(gate.command.subprocess, "run", late)
    found = list(gate.runner.events(section(gate, "bench").tasks(sizes(gate)), LATER, set(), "cpu"))
    assert [next(iter(event)) for event in found] == ["begin", "late", "end"]
    card = bench._parser().parse_args(gate.SIZES["card"].bench)
    assert (card.device, card.dtype, len(card.shape)) == ("cuda", "bfloat16", 1)
    assert card.batch == list(gate.SIZES["card"].bench_batches)


# -- what runs them ---------------------------------------------------------------------------------------


def test_a_task_that_breaks_down_is_a_row(gate: ModuleType) -> None:
    """The next one runs; after the section's time none begins."""

    def broken(until: float) -> list[Any]:
        raise RuntimeError("no such\ninstruction")

    tasks = [gate.Task("a", broken), gate.Task("b", lambda until: [gate.Row({}, {})])]
    events = list(gate.runner.events(tasks, LATER, set(), "cpu"))
    assert [next(iter(event)) for event in events] == ["begin", "row", "end"] * 2
    assert events[1]["row"]["fault"] == "RuntimeError: no such instruction"
    assert [event["begin"] for event in gate.runner.events(tasks, LATER, {"a"}, "cpu") if "begin" in event] == ["b"]
    assert list(gate.runner.events(tasks, time.time() - 1, set(), "cpu")) == []


class Pretended:
    """Workers that do what they are told to, one script for each."""

    def __init__(self, *scripts: list[dict[str, Any]]) -> None:
        self.scripts, self.done = list(scripts), []

    def __call__(self, section: str, sizes: str) -> Pretended:
        return self

    def run(self, until: float, done: set[str], end: float) -> Iterator[dict[str, Any]]:
        self.done.append(sorted(done))
        yield from self.scripts.pop(0)

    def stop(self) -> int:
        return -9


def outcome(gate: ModuleType, *scripts: list[dict[str, Any]], until: float = LATER) -> tuple[Any, Pretended]:
    tasks = [gate.Task(name, lambda until: []) for name in "abc"]
    section = gate.Section("s", "S", "", 1.0, lambda sizes: tasks)
    workers = Pretended(*scripts)
    return gate.runner.run(section, "tiny", until, until, None, lambda row: None, workers), workers


def test_a_process_that_dies_is_followed_by_another(gate: ModuleType) -> None:
    """Its task is a fault, those that were done are not done again."""
    row = {"row": {"cells": {}, "record": {}, "fault": ""}}
    first = [{"begin": "a"}, row, {"end": "a"}, {"begin": "b"}]
    found, workers = outcome(gate, first, [{"begin": "c"}, row, {"end": "c"}])
    assert workers.done == [[], ["a", "b"]]
    assert [row.fault for row in found.rows] == ["", "its process died (status -9)", ""]
    assert found.left == []


def test_a_process_that_does_nothing(gate: ModuleType) -> None:
    """Ends the section: a fault, and everything left is named."""
    found, _ = outcome(gate, [])
    assert [row.fault for row in found.rows] == ["its process did nothing (status -9)"]
    assert found.left == ["a", "b", "c"]


def test_a_task_that_began_too_late(gate: ModuleType) -> None:
    """Is named among those that were not reached, and not begun again; it is no fault."""
    script = [{"begin": "a"}, {"late": "a"}, {"end": "a"}, {"begin": "b"}, {"end": "b"}, {"begin": "c"}, {"end": "c"}]
    found, workers = outcome(gate, script)
    assert (found.rows, found.left, workers.done) == ([], ["a"], [[]])


def test_what_cannot_be_killed(gate: ModuleType) -> None:
    """Is abandoned."""

    def wait(seconds: float) -> int:
        raise subprocess.TimeoutExpired("hangs", seconds)

    process = SimpleNamespace(kill=lambda: None, wait=wait)
    assert sys.modules["gpu_gate.processes"].killed(process) is None


def test_no_time_left(gate: ModuleType) -> None:
    """Nothing is begun, which is no fault."""
    found, workers = outcome(gate, until=time.time() - 1)
    assert (found.rows, found.left, workers.done) == ([], ["a", "b", "c"], [])


@pytest.mark.slow
def test_a_process_of_its_own(gate: ModuleType) -> None:
    """A section as the gate runs it; `test_a_rehearsal` runs them all."""
    told: list[Any] = []
    found = gate.runner.run(section(gate, "step"), "tiny", LATER, LATER, None, told.append)
    assert found.rows == told
    assert [row.fault for row in told] == [""] * 4
    assert found.left == []


OWN_TESTS = """
import pytest

pytestmark = pytest.mark.gpu

@pytest.mark.parametrize("i", range(3))
def test_right(i): pass

def test_wrong(): assert not "so"

@pytest.mark.slow
def test_slow(): assert False
"""


def test_how_tests_ended(gate: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each by its name; a failure with its output; slow ones are left out. What else was run has its say."""
    own_tests = gate.own_tests
    monkeypatch.setattr(own_tests, "ROOT", tmp_path)
    monkeypatch.setattr(own_tests.os, "cpu_count", lambda: 4)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # begins faster
    (tmp_path / "test_own.py").write_text(OWN_TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu\n    slow\n")
    beside = [
        [sys.executable, "-c", "import os; print('broke down: 2:4, niceness', os.nice(0))"],
        [sys.executable, "-c", "raise SystemExit('died')"],
    ]
    files = {"test_own.py": 2, "test_none.py": 1}
    ended, broken = own_tests.run_tests(files, LATER, beside)
    own, none = ended.values()
    assert own.said.startswith("FAILED: 3 passed, 1 failed\n")
    assert 'assert not "so"' in own.said
    passed = {f"test_right[{i}]": "passed" for i in range(3)}
    how = {test.partition("::")[2]: how for test, how in own.tests.items()}
    assert how == {**passed, "test_wrong": "failed"}
    assert none.said.startswith("FAILED: nothing to run\nexit status 4")
    assert broken[0].startswith("2:4, niceness ")
    assert int(broken[0].split()[-1]) >= 10
    assert broken[1:] == ["exit status 1: died"]


def test_tests_that_time_did_not_reach(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Did not fail, and the one that was running is named; without pytest nothing is run."""
    own_tests, files = gate.own_tests, {"tests/sparse/test_timing.py": 2}
    [late] = own_tests.run_tests(files, time.time(), [])[0].values()
    assert (late.said, late.failed) == ("no test ended, then time was up", False)
    parts = [SimpleNamespace(tests={"a.py::x": "passed", "a.py::y": "running"}, fault="", late=True)]
    some = own_tests._said(parts)
    assert (some.said, some.failed) == ("1 passed, then time was up in y", False)
    parts.append(SimpleNamespace(tests={"a.py::z": "failed"}, fault="E z", late=False))
    assert own_tests._said(parts).said == "FAILED: 1 passed, 1 failed, then time was up in y\nE z"
    monkeypatch.setattr(own_tests, "find_spec", lambda name: None)
    [none] = own_tests.run_tests(files, LATER, [])[0].values()
    assert (none.said, none.failed) == ("not run: pytest is not installed", False)


def test_every_file_of_gpu_tests_is_in_the_gate(gate: ModuleType) -> None:
    """None is forgotten."""
    root = SCRIPT.parents[1]
    marked = {
        str(file.relative_to(root))
        for file in (root / "tests").rglob("test_*.py")
        if "pytest.mark.gpu" in file.read_text() and file != Path(__file__)
    }
    assert marked == set(gate.own_tests.FILES)


# -- what is written --------------------------------------------------------------------------------------


def record(pattern: str, batch: int, over: float | None, auto: str = "dense") -> dict[str, Any]:
    times = {"dense": {"median": 2.0, "high": 2.1}, "fast": {"median": 1.0}, "slow": {"median": 2.2}}
    size = [14336, 4096]  # a list, as JSON holds it
    return {
        "size": size,
        "pattern": pattern,
        "batch": batch,
        "over_dense": over,
        "times": times,
        "auto": {"backend": auto},
    }


def reached(gate: ModuleType, target: Any, products: list[dict[str, Any]], **more: Any) -> tuple[str, bool | None]:
    found = target.reached({"products": products[:1], "more products": products[1:], **more})
    return found.measured, found.met


def test_targets_of_products(gate: ModuleType) -> None:
    """The least of the batches decides; what was not reached leaves it open, unless it is missed already."""
    target = gate.targets.Faster("1:8 to batch 4", "1:8", (1, 2, 4), 4.0)
    all_three = [record("1:8", batch, over) for batch, over in ((4, 4.1), (2, 4.5), (1, 5.0))]
    assert reached(gate, target, all_three) == ("4.10x at batch 4, the least of 3 of 3 batches", True)
    assert reached(gate, target, all_three[:2]) == ("4.10x at batch 4, the least of 2 of 3 batches", None)
    missed = [*all_three[:2], record("1:8", 1, 3.9)]
    assert reached(gate, target, missed)[1] is reached(gate, target, missed[2:])[1] is False
    assert reached(gate, target, [record("1:8", 1, None)]) == ("0.00x at batch 1, the least of 1 of 3 batches", False)
    assert reached(gate, target, [record("1:4", 1, 9.0)]) == ("not reached in time", None)
    broken, said = {"task": "14336x4096 1:8 batch 2"}, "broke down: 14336x4096 1:8 batch 2"
    assert reached(gate, target, [broken]) == (said, None)
    assert reached(gate, target, [broken, all_three[0]])[0] == f"4.10x at batch 4, the least of 1 of 3 batches; {said}"
    assert reached(gate, gate.targets.NeverSlower(), [broken]) == ("not reached in time", None)


def test_the_other_targets(gate: ModuleType) -> None:
    """The overhead of a step, beside the noise; and "auto", which may lose to dense by noise only."""
    overhead, auto = gate.targets.Overhead("2:4", 0.03), gate.targets.NeverSlower()
    step = [{"variant": "2:4", "over_dense": 1.025, "noise": 1.001}]
    assert reached(gate, overhead, [], step=step) == ("+2.5% (dense again: +0.1%)", True)
    assert reached(gate, overhead, []) == ("not reached in time", None)
    wrong = [{**step[0], "fault": "the loss is nan"}]
    assert reached(gate, overhead, [], step=wrong) == ("wrong: the loss is nan", None)
    assert reached(gate, overhead, [], step=[{"task": "training step"}]) == ("broke down: training step", None)
    right = [record("2:4", 1, 2.0, auto="fast"), record("2:4", 2, 1.0)]
    assert reached(gate, auto, right) == ("0 of 2 products", True)
    wrong = [*right, record("2:4", 4, 1.0, auto="slow")]
    assert reached(gate, auto, wrong) == ("1 of 3 products, first 2:4 at batch 4", False)


def test_what_is_written(gate: ModuleType, tmp_path: Path) -> None:
    """Targets first, then each section with its faults and what it did not reach; JSON has all of it."""
    Row, Outcome = gate.Row, gate.runner.Outcome
    good = Row({"batch": "64", "over dense": "1.70", "results": "right"}, record("2:4", 64, 1.7))
    bad = gate.runner._broken("14336x4096 1:4 batch 1", "RuntimeError: a | b")
    outcomes = {"products": Outcome([good, bad], [f"t{i}" for i in range(20)], 1.0)}
    about = {"card": "NVIDIA H200 (pretended)", "driver": "1"}
    Ended = gate.own_tests.Ended
    tests = {"a.py": Ended("1 passed", {"a.py::test": "passed"}), "b.py": Ended("FAILED\nE x")}
    gate.report.write(tmp_path / "new", about, tests, [], gate.SECTIONS, {}, 10.0)  # before anything is measured
    files = gate.report.write(tmp_path / "new", about, tests, ["1:8, bitplane: E"], gate.SECTIONS, outcomes, 100.0)
    assert [file.name for file in files] == ["gpu-nvidia-h200-pretended.json", "gpu-nvidia-h200-pretended.md"]
    held = json.loads(files[0].read_text())
    assert held["machine"] == about
    assert held["targets"][0]["value"] == 1.7
    assert held["tests"]["a.py"]["tests"] == {"a.py::test": "passed"}
    assert held["compile"] == ["1:8, bitplane: E"]
    assert [row["fault"] for row in held["sections"]["products"]["rows"]] == ["", "RuntimeError: a | b"]
    assert len(held["sections"]["products"]["left"]) == 20
    written = files[1].read_text()
    assert written.index("## Targets") < written.index("## Products behind the targets") < written.index("## Tests")
    for words in (
        "driver 1",
        "- a.py: 1 passed",
        "What broke down: 1:8, bitplane: E.",
        "t11 and 8 more",
        "| 1.70 |",
        "RuntimeError: a / b |",
    ):
        assert words in written
    tables = [[line.count("|") for line in part.splitlines() if line.startswith("|")] for part in written.split("##")]
    assert all(len(set(table)) <= 1 for table in tables)
