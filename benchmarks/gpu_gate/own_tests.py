"""The tests of what runs on a card, side by side with the compilation of the kernels that are timed later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from gpu_gate.processes import killed

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "tests/kernels/triton/test_gathered_nm.py": 4,
    "tests/kernels/triton/test_bitplane_nm.py": 4,
    "tests/sparse/test_gpu_backends.py": 4,
    "tests/sparse/test_gpu_ops.py": 4,
    "tests/kernels/triton/test_vectorwise_nm.py": 3,
    "tests/kernels/triton/test_split.py": 2,
    "tests/kernels/triton/test_sparse_mma.py": 2,
    "tests/kernels/triton/test_lines.py": 2,
    "tests/kernels/triton/test_vectorwise_conv.py": 2,
    "tests/kernels/triton/test_bitplane_conv.py": 2,
    "tests/sparse/test_gpu_conv_ops.py": 2,
    "tests/kernels/triton/test_transposable.py": 2,
    "tests/sparse/test_sparse_training.py": 1,
    "tests/kernels/triton/test_finish.py": 1,
    "tests/kernels/triton/test_activation.py": 1,
    "tests/kernels/triton/test_split_sizes.py": 1,
    "tests/kernels/triton/test_nm_mask.py": 1,
    "tests/kernels/triton/test_registers.py": 1,
    "tests/kernels/triton/test_selection.py": 1,
    "tests/kernels/triton/test_densify.py": 1,
    "tests/kernels/triton/test_masks.py": 1,
    "tests/sparse/test_cusparselt.py": 1,
    "tests/sparse/test_sparse_mma.py": 1,
    "tests/sparse/test_timing.py": 1,
    "tests/kernels/test_init.py": 1,
    "tests/conversion/test_adaprune.py": 1,
    "tests/cli/test_bench.py": 1,
}
"""Those that take longest first, and among how many processes each is shared: to compile a kernel takes seconds."""
FAILED = "FAILED"
BROKE = "broke down: "
_NOTHING_TO_RUN = 5  # pytest's exit status: a file whose needs are not installed
_PYTEST = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider", "--tb=short"]


class Ended(NamedTuple):
    """How a file's tests ended."""

    said: str
    """For people; begins with `FAILED` where one of them failed. That time was up is no failure."""
    tests: Mapping[str, str] = {}
    """"passed", "failed", "skipped" or "running" (when it was stopped), by test; those that were not begun are not
    in it."""

    @property
    def failed(self) -> bool:
        return self.said.startswith(FAILED)


class _Part:
    """A share of a file's tests, in a process of its own."""

    def __init__(self, file: str, share: str, place: Path) -> None:
        self.file = file
        self._told, self._output = place.with_suffix(".told"), place.with_suffix(".out")
        self._command = [*_PYTEST, "-p", "gpu_gate.share", "--share", share, "--told", str(self._told), file]
        self.process: subprocess.Popen[bytes] | None = None
        self.late = True
        """Not begun, or not finished when time was up."""

    def start(self) -> None:
        self.process = _started(self._command, self._output)

    @property
    def tests(self) -> dict[str, str]:
        if not self._told.exists():
            return {}
        lines = self._told.read_text().splitlines(keepends=True)
        ended: dict[str, str] = {}
        for said in [json.loads(line) for line in lines if line.endswith("\n")]:
            if ended.get(said["test"]) != "failed":  # after which its fixtures may still end well
                ended[said["test"]] = said["ended"]
        return ended

    @property
    def fault(self) -> str:
        """The end of its output if it failed."""
        code = None if self.process is None or self.late else self.process.returncode
        if code in (None, 0, _NOTHING_TO_RUN) and "failed" not in self.tests.values():
            return ""
        output = self._output.read_text(errors="replace").strip()[-4000:]
        died = [f"died in {test}" for test, how in self.tests.items() if how == "running" and not self.late]
        return "\n".join([*([] if code in (None, 1) else [f"exit status {code}"]), *died, output])


def run_tests(
    files: Mapping[str, int], until: float, beside: Sequence[Sequence[str]]
) -> tuple[dict[str, Ended], list[str]]:
    """By file: how its tests ended; and what broke down in the other commands.

    Args:
        files: among how many processes each is shared. As many as there are cores run side by side.
        until: when those that still run are stopped (`time.time`).
        beside: other commands to run meanwhile, with what the tests leave of the cores. They print a line that begins
            with `BROKE` for each thing that breaks down.
    """
    there = find_spec("pytest") is not None
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # into files, not pipes: nobody reads one while another is waited for
        outputs = [Path(folder) / f"other{i}" for i in range(len(beside))]
        others = [_started(other, output, nice=10) for other, output in zip(beside, outputs)]
        parts = {
            file: [_Part(file, f"{turn}/{of}", Path(folder) / f"test{i}-{turn}") for turn in range(of)]
            for i, (file, of) in enumerate(files.items())
        }
        if there:
            _run([part for each in parts.values() for part in each], until)
        said = {
            file: _said(each) if there else Ended("not run: pytest is not installed") for file, each in parts.items()
        }
        for file, ended in said.items():
            print(f"{file}: {ended.said}", flush=True)
        broken: list[str] = []
        for process, output in zip(others, outputs):
            in_time, told = _stopped(process, until), output.read_text(errors="replace")
            broken += [line.removeprefix(BROKE) for line in told.splitlines() if line.startswith(BROKE)]
            if in_time and process.returncode:
                broken.append(f"exit status {process.returncode}: {' '.join(told[-300:].split())}")
        return said, broken


def _run(parts: list[_Part], until: float) -> None:
    waiting, running = list(parts), list[_Part]()
    while (waiting or running) and time.time() < until:
        for part in running:
            assert part.process is not None
            part.late = part.process.poll() is None
        running = [part for part in running if part.late]
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(waiting.pop(0))
            running[-1].start()
        time.sleep(0.05)
    for part in running:
        assert part.process is not None
        part.late = not _stopped(part.process, until)


def _said(parts: Sequence[_Part]) -> Ended:
    tests = {test: how for part in parts for test, how in part.tests.items()}
    faults = [part.fault for part in parts if part.fault]
    counted = Counter(tests.values())
    words = [", ".join(f"{counted[how]} {how}" for how in ("passed", "failed", "skipped") if counted[how])]
    if not words[0]:
        words = ["no test ended" if any(part.late for part in parts) else "nothing to run"]
    if any(part.late for part in parts):
        within = [test.split("::", 1)[-1] for test, how in tests.items() if how == "running"]
        words.append("then time was up" + (f" in {', '.join(within)}" if within else ""))
    said = ", ".join(words)
    return Ended("\n".join([f"{FAILED}: {said}", *faults]) if faults else said, tests)


def _started(command: Sequence[str], output: Path, nice: int = 0) -> subprocess.Popen[bytes]:
    own = (str(ROOT), str(ROOT / "benchmarks"))
    path = os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
    with output.open("w") as out:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
            stdout=out,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(os.nice, nice),
        )


def _stopped(process: subprocess.Popen[bytes], until: float) -> bool:
    """Wait for it, and stop it when time is up; whether it ended by itself."""
    try:
        process.wait(max(0.0, until - time.time()))
    except subprocess.TimeoutExpired:
        killed(process)
        return False
    return True
