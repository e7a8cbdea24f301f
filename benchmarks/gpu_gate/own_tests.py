"""The tests of what runs on a card, side by side with the compilation of the kernels that are timed later."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
FILES = (
    "tests/kernels/triton/test_gathered_nm.py",
    "tests/kernels/triton/test_bitplane_nm.py",
    "tests/kernels/triton/test_vectorwise_nm.py",
    "tests/kernels/triton/test_lines.py",
    "tests/kernels/triton/test_vectorwise_conv.py",
    "tests/kernels/triton/test_bitplane_conv.py",
    "tests/kernels/triton/test_sparse_mma.py",
    "tests/kernels/triton/test_finish.py",
    "tests/kernels/triton/test_activation.py",
    "tests/kernels/triton/test_split.py",
    "tests/kernels/triton/test_split_sizes.py",
    "tests/kernels/triton/test_nm_mask.py",
    "tests/kernels/triton/test_transposable.py",
    "tests/kernels/triton/test_densify.py",
    "tests/kernels/triton/test_masks.py",
    "tests/sparse/test_gpu_ops.py",
    "tests/sparse/test_gpu_conv_ops.py",
    "tests/sparse/test_gpu_backends.py",
    "tests/sparse/test_cusparselt.py",
    "tests/sparse/test_sparse_mma.py",
    "tests/sparse/test_sparse_training.py",
    "tests/sparse/test_timing.py",
    "tests/kernels/test_init.py",
    "tests/conversion/test_adaprune.py",
    "tests/cli/test_bench.py",
)
FAILED = "FAILED"
_NOTHING_TO_RUN = 5  # pytest's exit status: a file whose needs are not installed


def run_tests(files: Sequence[str], until: float, beside: Sequence[Sequence[str]]) -> dict[str, str]:
    """By file: how its tests ended. The files run side by side, for they mostly wait for compilers.

    Args:
        until: when those that still run are stopped (`time.time`).
        beside: other commands to run meanwhile, whatever becomes of them.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    there, began = find_spec("pytest") is not None, time.time()
    ended = dict.fromkeys(files, "not run: pytest is not installed")
    with TemporaryDirectory() as folder:
        # into files, not pipes: nobody reads one while another is waited for
        others = [_started(other, Path(folder) / f"other{i}") for i, other in enumerate(beside)]
        said = {file: Path(folder) / f"test{i}" for i, file in enumerate(files)}
        running = {file: _started([*command, file], said[file]) for file in files} if there else {}
        for file, process in running.items():
            in_time = _stopped(process, until)
            told = said[file].read_text(errors="replace").strip()
            if not in_time:
                ended[file] = f"{FAILED}: not finished in {time.time() - began:.0f} s\n{told[-1000:]}"
            elif process.returncode not in (0, _NOTHING_TO_RUN):
                ended[file] = f"{FAILED}\n{told[-4000:]}"
            else:
                ended[file] = told.splitlines()[-1] if told else "no output"
            print(f"{file}: {ended[file]}", flush=True)
        for process in others:
            _stopped(process, until)
    return ended


def _started(command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)


def _stopped(process: subprocess.Popen[bytes], until: float) -> bool:
    """Wait for it, and stop it when time is up; whether it ended by itself."""
    try:
        process.wait(max(0.0, until - time.time()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True
