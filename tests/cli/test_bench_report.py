"""How measurements are shown."""

from __future__ import annotations

import json

from lightning_nm.cli import bench_report
from lightning_nm.cli.bench_report import Measured, machine, table, write
from lightning_nm.sparse.choice import Choice
from lightning_nm.sparse.comparison import Comparison
from lightning_nm.sparse.timing import Timing

FAST = Measured(
    ["a.weight", "b.weight"],
    [64, 32, 3, 3],
    "2:4",
    [8, 32, 14, 10],
    "float32",
    Comparison(
        {
            "dense": Timing(400e-6, 390e-6, 420e-6, 380e-6, 9),
            "onednn": Timing(200e-6, 190e-6, 210e-6, 180e-6, 9),
            "cpu": Timing(100e-6, 90e-6, 120e-6, 80e-6, 9),
        },
        {},
        {},
        Choice("cpu", {"cpu": 1e-4}, "the fastest"),
    ),
)
WRONG = Measured(
    ["c.weight"],
    [64, 32],
    "1:4",
    [8, 32],
    "bfloat16",
    Comparison(
        {"dense": Timing(1e-3, 1e-3, 1e-3, 1e-3, 5)},
        {"onednn": "prepacked weights are float32"},
        {"cpu": "3 wrong"},
        None,
    ),
)


def test_cells():
    """Names, sizes, medians with quartiles, ratios over both dense ones, and what "auto" takes."""
    columns, [cells] = table([FAST])
    assert dict(zip(columns, cells)) == {
        "layers": "a.weight (x2)",
        "shape": [64, 32, 3, 3],
        "pattern": "2:4",
        "x": "8, 14x10",
        "dense, us": "400 (390-420)",
        "onednn, us": "200 (190-210)",
        "cpu, us": "100 (90-120)",
        "over dense": "4.00",
        "over best dense": "2.00",
        "auto": "cpu",
        "remarks": "auto: the fastest",
    }


def test_cells_of_a_wrong_result():
    """No number stands for it."""
    columns, [row] = table([WRONG])
    cells = dict(zip(columns, row))
    assert [cells[name] for name in ("onednn, us", "cpu, us", "over dense", "auto")] == ["-"] * 4
    assert cells["remarks"] == "cpu: WRONG, 3 wrong; onednn: prepacked weights are float32"


def test_files(tmp_path):
    """JSON with everything, a Markdown table with a row each, and the figure."""
    json_file, markdown, figure = write(tmp_path / "a" / "b", [FAST, WRONG], [("d", (2, 3), "dense")], {"batch": [8]})
    held = json.loads(json_file.read_text())
    assert held["machine"].keys() >= {"processor", "threads", "torch", "llvmlite", "date"}
    assert held["asked"] == {"batch": [8]}
    assert held["left"] == [["d", [2, 3], "dense"]]
    fast, wrong = held["rows"]
    assert fast["layers"] == ["a.weight", "b.weight"]
    assert fast["times"]["cpu"] == {"median": 1e-4, "low": 9e-5, "high": 1.2e-4, "least": 8e-5, "rounds": 9}
    assert (fast["over_dense"], fast["over_best_dense"], fast["auto"]["backend"]) == (4.0, 2.0, "cpu")
    assert wrong["wrong"] == {"cpu": "3 wrong"}
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(tmp_path, monkeypatch):
    """The other two files are written all the same."""
    monkeypatch.setattr(bench_report, "find_spec", lambda name: None)
    assert [file.name for file in write(tmp_path, [FAST], [], {})] == ["bench.json", "bench.md"]


def test_the_machine_without_a_package(monkeypatch):
    """It is said, not raised."""
    monkeypatch.setattr(bench_report, "installed", lambda package: "not installed")
    assert machine()["llvmlite"] == "not installed"
