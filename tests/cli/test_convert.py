"""`lightning-nm convert` on real files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_nm import NMSparsityCallback
from lightning_nm.cli.main import main
from lightning_nm.patterns import NM
from tests.cli import mine
from tests.helpers import trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """dense.ckpt of a Lightning run, and plain.pt."""
    folder = tmp_path_factory.mktemp("user")
    torch.manual_seed(0)
    run = trainer(folder, max_epochs=2)
    run.fit(mine.Net(width=16), mine.Data())
    run.save_checkpoint(folder / "dense.ckpt")
    torch.save(mine.plain(24).state_dict(), folder / "plain.pt")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.ckpt"


QUICK = ["--iterations=20", "--no-progress"]
LIGHTNING = ["--model=tests.cli.mine.Net", "--data=tests.cli.mine.Data", "--pattern=2:4", *QUICK]


def convert(folder, out, *words, ckpt="dense.ckpt"):
    return main(["convert", str(folder / ckpt), "-o", str(out), *words])


def obeyed(weight: Tensor, pattern: NM, dim: int = 1) -> bool:
    return pattern.violations(weight, dim=dim) == 0 and bool(weight.any())


def test_as_a_new_user_would(folder, out):
    """A process of its own, in the user's folder: the table, the bar, the file, and a report without a pattern."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    shutil.copy(mine.__file__, folder / "mine.py")
    words = ["--model", "mine.Net", "--data", "mine.Data", "--data.batch_size", "50", "--pattern", "2:4"]

    def run(*command):
        line = [sys.executable, "-m", "lightning_nm.cli.main", *command]
        return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)

    done = run("convert", "dense.ckpt", *words, "--iterations", "20", "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "batches of 50" in done.stdout
    assert "batch norm: statistics of 1 layers estimated anew" in done.stdout
    assert f"check it: lightning-nm report {out}" in done.stdout
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if ".weight" in line}
    assert [name for name, line in rows.items() if "2:4" in line] == ["body.0.weight", "body.3.weight", "head.weight"]
    assert rows["head.weight"].count("%") == 3
    assert "60/60" in done.stderr
    report = run("report", str(out))
    assert report.returncode == 0, report.stderr
    assert "3 of 3 weights obey" in report.stdout


def test_the_file_serves_lightning(folder, out):
    """Loaded safely, by load_from_checkpoint and by a Trainer; and a sparse fit starts from it."""
    assert convert(folder, out, *LIGHTNING) == 0
    saved = torch.load(out, weights_only=True)
    dense = torch.load(folder / "dense.ckpt", weights_only=True)
    assert [(k, v.shape, v.dtype) for k, v in saved["state_dict"].items()] == [
        (k, v.shape, v.dtype) for k, v in dense["state_dict"].items()
    ]
    assert saved["hyper_parameters"] == {"width": 16, "depth": 1}
    assert not {"optimizer_states", "lr_schedulers", "loops", "callbacks"} & saved.keys()
    model = mine.Net.load_from_checkpoint(out)
    assert obeyed(model.head.weight, NM(2, 4))
    L.seed_everything(0, verbose=False)
    trainer(folder).validate(mine.Net(16), mine.Data(), ckpt_path=out, verbose=False, weights_only=True)
    callback = NMSparsityCallback("2:4", method="frozen", report=False)
    masks = {name: tensor != 0 for name, tensor in model.state_dict().items()}
    trainer(folder, callback, max_epochs=1).fit(model, mine.Data())
    assert torch.equal(model.head.weight != 0, masks["head.weight"])


def test_a_plain_state_dict(folder, out, capsys):
    """With a function that makes the module, its argument, and a function that gives batches."""
    words = [
        "--model=tests.cli.mine.plain",
        "--model.width=24",
        "--data=tests.cli.mine.batches",
        "--pattern=1:8",
        *QUICK,
    ]
    assert convert(folder, out, *words, ckpt="plain.pt") == 0
    assert obeyed(torch.load(out, weights_only=True)["state_dict"]["2.weight"], NM(1, 8))
    assert main(["report", str(out)]) == 0
    assert "2 of 2 weights obey" in capsys.readouterr().out


def test_without_data_weights_are_only_masked(folder, out, capsys):
    """And the report says what batch norm is left with."""
    assert convert(folder, out, "--model=tests.cli.mine.Net", "--pattern=2:4") == 0
    dense, saved = (torch.load(path, weights_only=True)["state_dict"] for path in (folder / "dense.ckpt", out))
    weight = dense["head.weight"]
    assert torch.equal(saved["head.weight"], torch.where(NM(2, 4).mask(weight), weight, 0.0))
    shown = capsys.readouterr().out
    assert "dense.ckpt, by one-shot" in shown
    assert "batch norm: statistics are still those of the dense network" in shown


def test_ignored_and_overridden_weights(folder, out, capsys):
    """Globs as everywhere; the record and the report know each weight's pattern, and why others have none."""
    words = ["--ignore=head", "--override", "body.0=1:4T", "--method=one-shot"]
    assert convert(folder, out, *LIGHTNING, *words) == 0
    assert "ignored by 'head'" in capsys.readouterr().out
    record = torch.load(out, weights_only=True)["sparse_weights"]
    assert {name: entry["pattern"] for name, entry in record.items()} == {
        "body.0.weight": "1:4T",
        "body.3.weight": "2:4",
    }
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "1:4T" in shown
    assert "not selected in the conversion" in shown


def test_n_by_density(folder, out, tmp_path):
    """Of an unstructured sparse model: each layer has its own N, dense ones stay dense."""
    state = torch.load(folder / "plain.pt", weights_only=True)
    state["0.weight"][:, ::2] = 0.0
    torch.save(state, tmp_path / "sparse.pt")
    words = ["--model=tests.cli.mine.plain", "--model.width=24", "--m=8", "--confidence=0.6"]
    assert convert(tmp_path, out, *words, ckpt="sparse.pt") == 0
    saved = torch.load(out, weights_only=True)
    assert saved["sparse_weights"] == {"0.weight": {"pattern": "4:8", "dim": 1}}
    assert torch.equal(saved["state_dict"]["0.weight"], state["0.weight"])


def test_one_budget_for_all_layers(folder, out):
    """Each layer's own sparsity is recorded, and judged by the report."""
    assert convert(folder, out, "--model=tests.cli.mine.Net", "--pattern=unstructured@0.5", "--global-budget") == 0
    record = torch.load(out, weights_only=True)["sparse_weights"]
    assert len({entry["pattern"] for entry in record.values()}) > 1
    assert main(["report", str(out)]) == 0


def test_a_shared_budget_is_that_of_the_layers_that_share_it(folder, out):
    """What an override takes out gives and takes nothing."""
    words = ["--model=tests.cli.mine.Net", "--pattern=unstructured@0.5", "--global-budget", "--override=head=dense"]
    assert convert(folder, out, *words) == 0
    weights = torch.load(out, weights_only=True)["state_dict"]
    kept = [weights[name] != 0 for name in ("body.0.weight", "body.3.weight")]
    assert sum(int(mask.sum()) for mask in kept) == sum(mask.numel() for mask in kept) // 2
    assert bool((weights["head.weight"] != 0).all())


def test_rearranged_first(folder, out, capsys):
    """The table says what moved; the masks keep more than without."""

    def retained() -> float:
        before = mine.Net.load_from_checkpoint(folder / "dense.ckpt", weights_only=True)
        weights = torch.load(out, weights_only=True)["state_dict"]
        names = ("body.0.weight", "body.3.weight", "head.weight")
        kept = sum(float(weights[name].abs().sum()) for name in names)
        return kept / sum(float(before.state_dict()[name].abs().sum()) for name in names)

    words = [*LIGHTNING, "--method=one-shot"]
    assert convert(folder, out, *words) == 0
    plain = retained()
    assert convert(folder, out, *words, "--rearrange", "--force") == 0
    assert retained() > plain
    assert "dense.ckpt, rearranged" in capsys.readouterr().out
    assert main(["report", str(out)]) == 0


def test_activation_scores(folder, out):
    """The largest |w| * ||x|| stay, as in a computation by hand."""
    words = ["--model=tests.cli.mine.plain", "--model.width=24", "--data=tests.cli.mine.batches", "--pattern=2:4"]
    assert convert(folder, out, *words, "--scores=activations", "--method=one-shot", ckpt="plain.pt") == 0
    state = torch.load(folder / "plain.pt", weights_only=True)
    x = torch.cat([torch.ones(4, 16), torch.zeros(4, 16)])
    score = state["2.weight"].abs() * (x @ state["0.weight"].t() + state["0.bias"]).relu().norm(dim=0)
    assert torch.equal(torch.load(out, weights_only=True)["state_dict"]["2.weight"] != 0, NM(2, 4).mask(score))


def test_the_users_call_runs_the_model(folder, out, capsys):
    """Where the model's own steps cannot."""
    assert convert(folder, out, *LIGHTNING, "--call=tests.cli.mine.run_it", "--samples=16") == 0
    assert "called" in capsys.readouterr().out


def test_a_generator_of_batches_ending_in_a_single_sample(folder, out, capsys):
    """Gone through twice; batch norm has no variance of one sample: said, and no reason to lose the conversion."""
    words = ["--model=tests.cli.mine.Net", "--data=tests.cli.mine.one_by_one", "--pattern=2:4", *QUICK]
    assert convert(folder, out, *words, "--call=tests.cli.mine.run_rows") == 0
    assert "still those of the dense network (Expected more than 1 value" in capsys.readouterr().out
    dense, saved = (torch.load(path, weights_only=True)["state_dict"] for path in (folder / "dense.ckpt", out))
    assert torch.equal(dense["body.1.running_var"], saved["body.1.running_var"])


@pytest.mark.filterwarnings("ignore:Found keys that are in the model")
def test_weights_that_the_checkpoint_does_not_hold_are_told(folder, out, tmp_path, capsys):
    """They could not be saved."""
    run = trainer(folder, max_epochs=1)
    run.fit(mine.Partial(width=16), mine.Data())
    run.save_checkpoint(tmp_path / "head.ckpt")
    words = ["--model=tests.cli.mine.Partial", "--pattern=2:4"]
    assert convert(tmp_path, out, *words, ckpt="head.ckpt") == 2
    assert "does not hold ['body.0.weight', 'body.3.weight']; leave them dense" in capsys.readouterr().err
    assert convert(tmp_path, out, *words, "--ignore=body", ckpt="head.ckpt") == 0


def test_an_existing_file_is_overwritten_only_if_forced(folder, out, capsys):
    """And never the input."""
    words = ["--model=tests.cli.mine.Net", "--pattern=2:4"]
    out.write_text("precious")
    assert convert(folder, out, *words) == 2
    assert capsys.readouterr().err == f"lightning-nm convert: {out} exists; --force overwrites it\n"
    assert out.read_text() == "precious"
    before = (folder / "dense.ckpt").read_bytes()
    assert convert(folder, folder / "dense.ckpt", *words, "--force") == 2
    assert "is the checkpoint that is converted" in capsys.readouterr().err
    assert (folder / "dense.ckpt").read_bytes() == before
    assert convert(folder, out, *words, "--force") == 0
    assert [path.name for path in out.parent.iterdir()] == ["out.ckpt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=tests.cli.mine.Net"], "name the pattern, --pattern N:M; or --m M"),
        (["--model=tests.cli.mine.Net", "--pattern=24"], "'24' is not a sparsity pattern"),
        (["--model=tests.cli.mine.Net", "--pattern=2:5"], "inputs that one output sums over are not a multiple of 5"),
        (["--model=tests.cli.mine.Net", "--pattern=2:4", "--method=adaprune"], "need calibration data: --data"),
        (["--model=tests.cli.mine.Net", "--pattern=2:4", "--ignore=haed"], "these match no parameter: ['haed']"),
        (["--model=tests.cli.mine.Net", "--pattern=2:4", "--override=head"], "write GLOB=N:M or GLOB=dense"),
        (["--model=tests.cli.mine.Nix", "--pattern=2:4"], "tests.cli.mine.Nix cannot be imported: module"),
        (["--model=tests.cli.mine.no_model", "--pattern=2:4"], "no_model made a int, not a module"),
        (["--model=tests.cli.mine.plain", "--pattern=2:4"], "dense.ckpt does not fit plain: Error(s) in loading"),
        (["--model=tests.cli.mine.Net", "--model.depth=2", "--pattern=2:4"], "dense.ckpt does not fit Net: Error(s)"),
        (["--model=tests.cli.mine.Net", "--pattern=2:4", "--bogus"], "nrecognized arguments: --bogus"),
        ([*LIGHTNING, "--data.rows=0"], "there are no calibration batches"),
        (["--data=tests.cli.mine.Several", *LIGHTNING[::2], *QUICK], "gives several loaders"),
        ([*LIGHTNING, "--samples=0"], "samples=0"),
        ([*LIGHTNING, "--device=abacus"], "--device abacus: "),
        (["--model=tests.cli.mine.Data", "--pattern=2:4"], "Data made a Data, not a module"),
        ([*LIGHTNING, "--data.rows=64", "--call=tests.cli.mine.plain"], "cannot be run on the batches of"),
        ([*LIGHTNING[:1], "--data=tests.cli.mine.NeedsTrainer", *LIGHTNING[2:]], "no batches without a Trainer (Attr"),
        ([*LIGHTNING, "--rearrange", "--call=tests.cli.mine.plain"], "does not go with --call"),
        (["--model=tests.cli.mine.Net", "--m=4"], "no layer has so many zeros that N:4 with N < 4"),
    ],
)
def test_bad_input_is_told(folder, out, capsys, words, message):
    """In a line, with status 2, and no file is written."""
    assert convert(folder, out, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("lightning-nm convert: ")
    assert message in error
    assert not out.exists()


def test_places_that_cannot_be_written_are_told_first(folder, tmp_path, capsys):
    """Not after the work is done."""
    (tmp_path / "file").write_text("")
    for place, message in ((tmp_path / "file" / "x.ckpt", "file is a file"), (tmp_path, "is a folder")):
        assert convert(folder, place, *LIGHTNING, "--force") == 2
        assert message in capsys.readouterr().err


def test_averages_and_strangers_keep_out_of_the_way(folder, out, tmp_path):
    """An average of dense weights is dropped; a key that the model does not have stays."""
    checkpoint = torch.load(folder / "dense.ckpt", weights_only=True)
    checkpoint["current_model_state"] = checkpoint["state_dict"]
    checkpoint["averaging_state"] = {"n_averaged": 3}
    checkpoint["state_dict"] = {**checkpoint["state_dict"], "teacher.weight": torch.ones(2)}
    torch.save(checkpoint, tmp_path / "more.ckpt")
    lenient = ["--model=tests.cli.mine.Lenient", "--pattern=2:4"]
    assert convert(tmp_path, out, *lenient, ckpt="more.ckpt") == 0
    written = torch.load(out, weights_only=True)
    assert not {"current_model_state", "averaging_state"} & written.keys()
    assert torch.equal(written["state_dict"]["teacher.weight"], torch.ones(2))


def test_bad_checkpoints_are_told(folder, out, tmp_path, capsys):
    """A missing one, and NaN in a weight."""
    words = ["--model=tests.cli.mine.plain", "--model.width=24", "--pattern=2:4"]
    assert convert(tmp_path, out, *words, ckpt="none.pt") == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    state = torch.load(folder / "plain.pt", weights_only=True)
    state["2.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    assert convert(tmp_path, out, *words, ckpt="nan.pt") == 2
    assert "2.weight: a weight of shape (8, 24) holds 1 NaN" in capsys.readouterr().err
    torch.save({}, tmp_path / "net.ckpt")
    assert convert(tmp_path, out, "--model=tests.cli.mine.Net", "--pattern=2:4", ckpt="net.ckpt") == 2
    assert "Net cannot be made: " in capsys.readouterr().err
