"""What `lightning-nm bench` measured: as a table, JSON and a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_nm.callbacks.table import markdown_table
from lightning_nm.sparse import BACKENDS
from lightning_nm.sparse.choice import DENSE
from lightning_nm.sparse.comparison import Comparison
from lightning_nm.sparse.machine import installed, processor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READING = (
    "Medians (first and third quartile in brackets) of rounds in which all take turns. dense: what torch does with the "
    "weight as it is; onednn: its best dense path. 'over': how many times as fast the fastest sparse backend is."
)


@dataclass(frozen=True)
class Measured:
    """One product, by all backends."""

    layers: list[str]
    shape: list[int]
    pattern: str
    x: list[int]
    """Its shape."""
    dtype: str
    compared: Comparison

    def cells(self, backends: Sequence[str]) -> tuple[object, ...]:
        """A row of `table`."""
        times, auto = self.compared.times, self.compared.auto
        shown = [
            f"{t.median * 1e6:.0f} ({t.low * 1e6:.0f}-{t.high * 1e6:.0f})" if (t := times.get(name)) else "-"
            for name in backends
        ]
        ratios = [self.compared.over("dense"), self.compared.over(*DENSE)]
        return (
            self.label,
            self.shape,
            self.pattern,
            self.size,
            *shown,
            *["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios],
            auto.backend if auto else "-",
            self._remarks(),
        )

    @property
    def label(self) -> str:
        """The first of the layers, and how many there are."""
        return self.layers[0] + (f" (x{len(self.layers)})" if len(self.layers) > 1 else "")

    @property
    def size(self) -> str:
        """Batch, and images: ``"32, 14x14"``."""
        return ", ".join([str(self.x[0]), *(["x".join(map(str, self.x[2:]))] if self.x[2:] else [])])

    def _remarks(self) -> str:
        compared = self.compared
        faults = [f"{name}: WRONG, {fault}" for name, fault in compared.wrong.items()]
        refusals = [f"{name}: {refusal}" for name, refusal in compared.refusals.items()]
        # where a backend refuses, its own words have said why
        why = [f"auto: {compared.auto.reason}"] if compared.auto and compared.auto.times else []
        return "; ".join([*faults, *refusals, *why])

    def record(self) -> dict[str, Any]:
        """As JSON holds it, times in seconds."""
        compared = self.compared
        return {
            **{key: value for key, value in vars(self).items() if key != "compared"},
            "times": {name: timing._asdict() for name, timing in compared.times.items()},
            "refusals": compared.refusals,
            "wrong": compared.wrong,
            "over_dense": compared.over("dense"),
            "over_best_dense": compared.over(*DENSE),
            "auto": asdict(compared.auto) if compared.auto else None,
        }


def table(rows: Sequence[Measured]) -> tuple[list[str], list[tuple[object, ...]]]:
    """(columns, cells): of the backends that had something to say of any row."""
    told = {name for row in rows for name in (*row.compared.times, *row.compared.refusals, *row.compared.wrong)}
    backends = [name for name in BACKENDS if name in told]
    times = [f"{name}, us" for name in backends]
    columns = ["layers", "shape", "pattern", "x", *times, "over dense", "over best dense", "auto", "remarks"]
    return columns, [row.cells(backends) for row in rows]


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What runs here, and when."""
    said: dict[str, str | int] = {"processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
    if device != "cpu":
        said["gpu"] = torch.cuda.get_device_name(device)
    said["threads"] = torch.get_num_threads()
    said.update((package, installed(package)) for package in ("torch", "llvmlite", "numba", "triton", "lightning-nm"))
    said["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return said


def write(
    folder: Path, rows: Sequence[Measured], left: Sequence[Sequence[object]], asked: Mapping[str, object]
) -> list[Path]:
    """bench.json, bench.md and, where matplotlib is installed, bench.png; says which.

    Args:
        left: name, shape and reason of what was not timed.
        asked: what the user gave.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = machine(str(asked.get("device", "cpu")))
    held = {"machine": about, "asked": asked, "rows": [row.record() for row in rows], "left": left}
    files = [folder / "bench.json", folder / "bench.md"]
    files[0].write_text(json.dumps(held, indent=2) + "\n")
    words = ", ".join(f"{key} {value}" for key, value in about.items())
    files[1].write_text(f"{words}\n\n{READING}\n\n{markdown_table(*table(rows))}\n")
    if find_spec("matplotlib") is not None:
        files.append(folder / "bench.png")
        figure(rows, f"{about.get('gpu', about['processor'])}, {about['threads']} threads").savefig(files[-1], dpi=120)
    return files


def figure(rows: Sequence[Measured], title: str) -> Figure:
    """How many times as fast as dense each backend is, a bar for each, with quartiles."""
    from matplotlib.figure import Figure

    names = [name for name in BACKENDS if name != "dense" and any(name in row.compared.times for row in rows)]
    drawn = Figure(figsize=(10, 1.5 + 0.22 * len(rows) * (len(names) + 1)), layout="constrained")
    axes = drawn.subplots()
    height = 1 / (len(names) + 1)
    for place, name in enumerate(names):
        for at, row in enumerate(rows):
            times = row.compared.times
            if not {name, "dense"} <= times.keys():
                continue
            dense, own = times["dense"].median, times[name]
            speeds = dense / own.high, dense / own.median, dense / own.low
            axes.barh(
                at + (place - (len(names) - 1) / 2) * height,
                speeds[1],
                height,
                xerr=[[speeds[1] - speeds[0]], [speeds[2] - speeds[1]]],
                color=f"C{place}",
                error_kw={"elinewidth": 0.8},
            )
        axes.barh(0, 0, color=f"C{place}", label=name)  # one line of the legend
    axes.axvline(1, color="black", linewidth=1, label="dense")
    axes.set_yticks(range(len(rows)), [f"{row.label} {row.shape} {row.pattern}, batch {row.size}" for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="times as fast as torch's dense product", title=title)
    axes.grid(axis="x", alpha=0.3)
    drawn.legend(loc="outside lower center", ncols=len(names) + 1)
    return drawn
