"""Runs a section in a process of its own, which says line by line what it does.

A kernel that reads where it must not makes the card unusable for its whole process, and one that hangs never comes
back: the next task then begins in another process.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gpu_gate.processes import killed
from gpu_gate.sections import OutOfTime, Row, Section, Task, fault_of, synchronize
from gpu_gate.sizes import SIZES

GRACE = 15.0
"""Seconds beyond its section's time for a task that has begun."""
_GATE = Path(__file__).resolve().parents[1] / "gpu.py"
Event = dict[str, Any]


class Outcome(NamedTuple):
    """What became of a section."""

    rows: list[Row]
    left: list[str]
    """Tasks that were not reached, or not finished in time."""
    seconds: float


# -- in the section's own process ---------------------------------------------------------------------


def events(tasks: list[Task], until: float, done: Collection[str], device: str) -> Iterator[Event]:
    """Of tasks that are not done yet: each one's begin, its rows and its end, until time is up or the card breaks."""
    for task in tasks:
        if task.name in done:
            continue
        if time.time() > until:
            return
        yield {"begin": task.name}
        try:
            for row in task.rows(until):
                yield {"row": row._asdict()}
            synchronize(device)
        except OutOfTime:
            yield {"late": task.name}
        except Exception as error:
            yield {"row": _broken(task.name, fault_of(error))._asdict()}
        yield {"end": task.name}
        try:
            synchronize(device)
        except Exception:
            return


def _broken(task: str, fault: str) -> Row:
    return Row({"task": task, "results": fault}, {"task": task, "fault": fault}, fault)


def serve(section: Section, sizes: str) -> None:
    """Wait for what is done and until when, then say what happens, a JSON line each."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes elsewhere
    if not (line := sys.stdin.readline()):
        return  # there was nothing to do
    given = json.loads(line)
    tasks = section.tasks(SIZES[sizes])
    for event in events(tasks, given["until"], set(given["done"]), SIZES[sizes].device):
        print(json.dumps(event), file=out, flush=True)


# -- in the gate's ------------------------------------------------------------------------------------


class Worker:
    """A process that has imported what a section needs, and waits."""

    def __init__(self, section: str, sizes: str) -> None:
        command = [sys.executable, str(_GATE), "--section", section, "--sizes", sizes]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # else it died amid it
                self._lines.put(line)
        self._lines.put(None)

    def run(self, until: float, done: Collection[str], end: float) -> Iterator[Event]:
        """What it says; it is stopped at ``end``."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"until": until, "done": sorted(done)}) + "\n")
            self._process.stdin.flush()
            while (line := self._lines.get(timeout=max(0.01, end - time.time()))) is not None:
                yield json.loads(line)
        except (queue.Empty, BrokenPipeError):
            pass
        finally:
            self.stop()

    def stop(self) -> int | None:
        """Its exit status; None: it cannot be stopped.

        One that waits ends by itself, one that works is not waited for.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            return self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            return killed(self._process)


def run(
    section: Section,
    sizes: str,
    until: float,
    end: float,
    worker: Worker | None,
    told: Callable[[Row], None],
    new_worker: Callable[[str, str], Worker] = Worker,
) -> Outcome:
    """All tasks of a section that are reached.

    Args:
        until: no task begins after it.
        end: nothing runs after it.
        worker: one that waits for this section.
        told: hears of each row at once.
    """
    began = time.time()
    names = [task.name for task in section.tasks(SIZES[sizes])]
    rows: list[Row] = []
    done, late = set[str](), set[str]()
    while len(done) < len(names) and time.time() < until:
        worker = worker or new_worker(section.name, sizes)
        before, within = len(done), None
        for event in worker.run(until, done, min(until + GRACE, end)):
            if "begin" in event:
                within = event["begin"]
            elif "end" in event:
                done.add(event["end"])
                within = None
            elif "late" in event:
                late.add(event["late"])
            else:
                rows.append(Row(**event["row"]))
                told(rows[-1])
        status, worker = worker.stop(), None
        if within is not None:
            stopped = time.time() >= min(until + GRACE, end)
            how = "was stopped, for it took too long" if stopped else f"died (status {status})"
            rows.append(_broken(within, f"its process {how}"))
            told(rows[-1])
            done.add(within)
        elif len(done) == before:
            if time.time() < until:
                rows.append(_broken(section.name, f"its process did nothing (status {status})"))
                told(rows[-1])
            break
    if worker is not None:
        worker.stop()
    return Outcome(rows, [name for name in names if name not in done - late], time.time() - began)
