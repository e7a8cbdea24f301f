"""`lightning-nm bench` as a user runs it."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lightning_nm import kernels
from lightning_nm.cli import bench
from lightning_nm.cli.main import main
from lightning_nm.patterns import NM
from lightning_nm.sparse import BACKENDS, accelerate, decision, machine, tuned
from lightning_nm.sparse.backends import DenseOperand

QUICK = ["--seconds", "0"]
SHAPE = ["--shape", "32", "64", "--pattern", "2:4", "--batch", "3"]


@pytest.fixture
def checkpoint(tmp_path):
    """Two equal 2:4 layers, one 2:4 convolution, and a dense head."""
    model = nn.ModuleDict(
        {"a": nn.Linear(64, 32), "b": nn.Linear(64, 32), "conv": nn.Conv2d(16, 32, 3), "head": nn.Linear(32, 3)}
    )
    with torch.no_grad():
        for name in ("a", "b", "conv"):
            model[name].weight.mul_(NM(2, 4).mask(model[name].weight))
    torch.save(model.state_dict(), tmp_path / "sparse.ckpt")
    return tmp_path / "sparse.ckpt"


def run(*words: object) -> int:
    return main(["bench", *map(str, words), *QUICK])


def test_a_checkpoint(checkpoint, tmp_path, capsys):
    """Equal layers once, a row for each batch, what is left and why; three files."""
    assert run(checkpoint, "--batch", 1, 4, "--size", 6, "--output", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert shown.count("a.weight (x2)") == shown.count("conv.weight") == 2
    assert "100% of its weights are not zero" in shown
    assert "4 of 4 rows: every result is right" in shown
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"bench.json", "bench.md", "bench.png"}
    held = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [row["x"] for row in held["rows"]] == [[1, 64], [4, 64], [1, 16, 6, 6], [4, 16, 6, 6]]
    assert all(row["times"].keys() == {"dense", "onednn", "cpu"} for row in held["rows"])


def test_shapes(capsys):
    """Every shape by every pattern; patterns that do not fit are told."""
    words = ["--shape", 32, 64, "--shape", 24, 8, 3, 3, "--size", 5, 7, "--channels-last"]
    assert run(*words, "--pattern", "2:4", "1x16@0.5", "--batch", 2) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 rows" in shown
    assert "2, 5x7" in shown
    assert "the 24 outputs of one GEMM are not a multiple of 16" in shown


def test_options_reach_the_measurement(tmp_path):
    """The dtype, and the threads, which are given back."""
    before = torch.get_num_threads()
    assert run(*SHAPE, "--dtype", "bfloat16", "--threads", 1, "--output", tmp_path) == 0
    held = json.loads((tmp_path / "bench.json").read_text())
    assert held["machine"]["threads"] == 1
    assert held["rows"][0]["dtype"] == "bfloat16"
    assert held["rows"][0]["refusals"] == {"onednn": "prepacked weights are float32"}
    assert torch.get_num_threads() == before


def test_tuning(monkeypatch, tmp_path, capsys):
    """What it finds is what a model gets from then on: also for patterns that its zeros tell otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = ["--shape", 64, 64, "--pattern", "2:4", "1:4V32", "--tune"]
    assert run(*words, "--batch", 4) == 0
    shown = capsys.readouterr().out
    assert "1x32@0.75" in shown
    assert "auto: tuned on 20" in shown
    assert f"tuned 2 products for {machine.name(torch.device('cpu'))}: {tuned.file()}" in shown
    entries = json.loads(tuned.file().read_text())
    assert len(entries) == 2
    decision.forget()
    layer = nn.Linear(64, 64, bias=False).requires_grad_(False)
    layer.weight.mul_(NM(1, 4, vector=32).mask(layer.weight))
    accelerated = accelerate(layer)
    layer(torch.randn(3, 64))
    (made,) = accelerated.choices["weight"]
    assert "tuned on 20" in made.why()
    assert made.backend in [entry["backend"] for entry in entries.values()]


def test_tuning_keeps_nothing_that_is_wrong(monkeypatch, tmp_path, capsys):
    """A wrong backend leaves no entry, and status 1."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(BACKENDS["cpu"], "hold", lambda weight, pattern, dim: DenseOperand(weight * 1.01, dim))
    assert run(*SHAPE, "--tune") == 1
    assert "tuned 0 products" in capsys.readouterr().out
    assert not tuned.file().exists()


def test_tuning_where_nothing_can_be_written(monkeypatch, tmp_path, capsys):
    """Is said, with status 1."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    assert run(*SHAPE, "--tune") == 1
    shown = capsys.readouterr().out
    assert "tuned 0 products" in shown
    assert f"could not write {tuned.file()}" in shown


def test_a_row_that_breaks_costs_no_other(monkeypatch, tmp_path, capsys):
    """It is among those not timed, with the reason; what was measured before Ctrl-C is shown."""
    compare = bench.compare

    def breaks(weight, pattern, dim, x, *rest, **options):
        if len(x) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried\nin vain")
        if len(x) == 5:
            raise KeyboardInterrupt
        return compare(weight, pattern, dim, x, *rest, **options)

    monkeypatch.setattr(bench, "compare", breaks)
    words = ["--shape", 32, 64, "--pattern", "2:4"]
    assert run(*words, "--batch", 1, 4, 2) == 1
    shown = capsys.readouterr().out
    assert "2 of 2 rows: every result is right" in shown
    assert "OutOfMemoryError: CUDA out of memory. Tried" in shown
    assert run(*words, "--batch", 1, 5, 2, "--output", tmp_path) == 130
    assert "1 of 1 rows" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 1


def test_what_is_tuned_by_default(monkeypatch):
    """Every power of two that a choice is made for."""
    asked = bench._parser().parse_args(["x.ckpt", "--tune"])
    assert bench._batches(asked) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    asked.device = "cuda"
    assert bench._batches(asked)[-1] == 8192
    asked.tune = False
    assert bench._batches(asked) == [1, 32]


def test_without_numba(monkeypatch, capsys):
    """Dense times, and the reason why there are no others."""
    monkeypatch.setattr(kernels, "compiled_cpu", lambda: None)
    assert run(*SHAPE) == 0
    assert "cpu: numba is not there or does not import" in capsys.readouterr().out


def test_a_wrong_result_is_status_1(monkeypatch, capsys):
    """The row says which backend, and by how much."""
    monkeypatch.setattr(BACKENDS["cpu"], "hold", lambda weight, pattern, dim: DenseOperand(weight * 1.01, dim))
    assert run(*SHAPE) == 1
    shown = capsys.readouterr().out
    assert "cpu: WRONG" in shown
    assert "0 of 1 rows: every result is right; 1 WRONG" in shown


def test_a_figure_needs_matplotlib(monkeypatch, tmp_path, capsys):
    """Without it that is said."""
    for module in (bench, bench.bench_report):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert run(*SHAPE, "--output", tmp_path) == 0
    assert "no figure: matplotlib is not installed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a checkpoint, or shapes with --shape"),
        (["none.ckpt"], "there is no checkpoint none.ckpt"),
        (["none.ckpt", "--shape", "4", "4"], "name a checkpoint, or shapes"),
        (["none.ckpt", "--pattern", "2:4"], "is told by their zeros"),
        (["--shape", "4", "4"], "--shape needs --pattern"),
        (["--shape", "4", "6", "--pattern", "2:4"], "nothing to time"),
        (["--shape", "4", "4", "3", "--pattern", "2:4", "--size", "5", "5"], "images of 1 sizes"),
        ([*SHAPE, "--seconds=-1"], "is no time"),
        ([*SHAPE, "--output", __file__], "is a file; name a folder"),
    ],
)
def test_bad_arguments(words, message, capsys):
    """One line, and status 2."""
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys):
    """The device is asked for, and missing."""
    assert run(*SHAPE, "--device", "cuda") == 2
    assert "--device cuda: " in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu(tmp_path):
    """Dense is timed; those for GPUs say why they do not multiply float32, those for CPUs are not asked."""
    assert run(*SHAPE, "--device", "cuda", "--output", tmp_path) == 0
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert "dense" in row["times"]
    assert row["refusals"].keys() >= {"gathered", "bitplane"}
    assert "cpu" not in row["refusals"]


@pytest.mark.parametrize("words", [["--batch", "0"], ["--threads", "x"], ["--pattern", "2x4"], ["--dtype", "int8"]])
def test_values_that_cannot_be_read(words, capsys):
    """The parser says which option."""
    with pytest.raises(SystemExit) as stopped:
        run(*SHAPE, *words)
    assert stopped.value.code == 2
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_a_dense_checkpoint(tmp_path, capsys):
    """Nothing to time: the reasons, and status 2."""
    torch.save(nn.Linear(8, 8).state_dict(), tmp_path / "dense.pt")
    assert run(tmp_path / "dense.pt") == 2
    assert "no weight of the checkpoint is sparse" in capsys.readouterr().err
