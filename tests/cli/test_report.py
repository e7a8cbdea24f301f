"""`lightning-nm report` on real files."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_nm import NMSparsityCallback
from lightning_nm.cli.report import examine, load_checkpoint, main
from lightning_nm.patterns import NM
from tests.helpers import SELECTED, net, trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a 2:4 run whose last Linear was left dense and whose convolution is 1:4."""
    folder = tmp_path_factory.mktemp("trained")
    callback = NMSparsityCallback("2:4", overrides={"net.2": None, "conv": "1:4"}, report=False)
    run = trainer(folder, callback, max_epochs=1)
    run.fit(net())
    run.save_checkpoint(folder / "trained.ckpt")
    return folder / "trained.ckpt"


def broken(trained, tmp_path, name="net.0.weight"):
    """The same checkpoint with one group too full."""
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["state_dict"][name][1, 4:8] = 1.0
    torch.save(checkpoint, tmp_path / "broken.ckpt")
    return tmp_path / "broken.ckpt"


def test_each_weight_by_its_own_pattern(trained):
    """The callback's state says which weights are meant to be sparse, and how."""
    verdicts = {v.name: v for v in examine(load_checkpoint(trained), None)}
    assert set(verdicts) == set(SELECTED)
    assert (verdicts["conv.weight"].pattern, verdicts["conv.weight"].obeys) == ("1:4", True)
    assert (verdicts["net.0.weight"].pattern, verdicts["net.0.weight"].obeys) == ("2:4", True)
    assert verdicts["net.2.weight"].obeys is None
    assert verdicts["net.2.weight"].remark == "not selected in training"


def test_status_0_where_all_obey(trained, capsys):
    """A named pattern is held against every selected weight; 1:4 is 2:4 too."""
    assert main([str(trained)]) == 0
    assert main([str(trained), "--pattern", "2:4"]) == 0
    assert "2 of 2 weights obey" in capsys.readouterr().out


def test_status_1_names_the_weight_and_the_groups(trained, tmp_path, capsys):
    """One group of five non-zeros among thousands is found."""
    assert main([str(broken(trained, tmp_path))]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 weights obey; not net.0.weight" in out
    assert "1 groups hold more than the pattern allows" in out


def test_plain_state_dict(tmp_path, capsys):
    """Without the callback's state every weight that the pattern fits is judged, vectors never."""
    model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        model[0].weight.mul_(NM(2, 4).mask(model[0].weight))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert main([str(tmp_path / "state.pt"), "--pattern", "2:4"]) == 1
    assert "not 2.weight" in capsys.readouterr().out
    assert main([str(tmp_path / "state.pt"), "--pattern", "2:4", "--ignore", "2.*"]) == 0
    verdicts = {v.name: v for v in examine(load_checkpoint(tmp_path / "state.pt"), NM(2, 4))}
    assert verdicts["3.weight"].remark == "the 3 inputs that one output sums over are not a multiple of 4"


def test_a_converted_checkpoint_by_its_record(tmp_path):
    """Each weight by the pattern and the dimension that the conversion wrote down, no other weight at all."""
    weight = torch.randn(8, 8)
    state = {"a": weight * NM(1, 4).mask(weight, dim=0), "b": weight}
    torch.save({"state_dict": state, "sparse_weights": {"a": {"pattern": "1:4", "dim": 0}}}, tmp_path / "new.ckpt")
    a, b = examine(load_checkpoint(tmp_path / "new.ckpt"), None)
    assert (a.pattern, a.obeys) == ("1:4", True)
    assert (b.obeys, b.remark) == (None, "not selected in the conversion")


def test_half_precision_checkpoint(tmp_path):
    """bf16 weights are counted as they are."""
    weight = torch.randn(4, 8)
    torch.save({"w": (weight * NM(1, 4).mask(weight)).bfloat16()}, tmp_path / "half.pt")
    assert main([str(tmp_path / "half.pt"), "--pattern", "1:4"]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "it is none, or damaged"),
        (b"", "it is none, or damaged"),
        (None, "there is no checkpoint"),
    ],
)
def test_unreadable_files_are_told(tmp_path, content, message):
    """Missing, empty and foreign files: an error with the path."""
    path = tmp_path / "file.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)


def test_truncated_checkpoint_is_told(trained, tmp_path):
    """Half a file is an error, not half a verdict."""
    path = tmp_path / "half.ckpt"
    path.write_bytes(trained.read_bytes()[: trained.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


def test_code_in_a_file_is_not_run(tmp_path):
    """Only tensors and builtins are unpickled."""
    torch.save({"state_dict": nn.Linear(4, 4)}, tmp_path / "module.pt")
    with pytest.raises(ValueError, match="it holds other objects than tensors"):
        load_checkpoint(tmp_path / "module.pt")


def test_folder_and_other_contents_are_told(tmp_path):
    """A sharded checkpoint is a folder; a bare tensor is no state dict."""
    with pytest.raises(ValueError, match="is a folder"):
        load_checkpoint(tmp_path)
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match="holds a Tensor, not a checkpoint"):
        load_checkpoint(tmp_path / "tensor.pt")


def test_nothing_to_judge_is_an_error(trained, tmp_path):
    """No pattern, no weight that it fits, or a recorded weight that is gone."""
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="name it with --pattern"):
        examine(load_checkpoint(tmp_path / "odd.pt"), None)
    with pytest.raises(ValueError, match=r"no weight to judge\n  w \[2, 3\]: the 3 inputs"):
        examine(load_checkpoint(tmp_path / "odd.pt"), NM(2, 4))
    checkpoint = load_checkpoint(trained)
    del checkpoint["state_dict"]["conv.weight"]
    with pytest.raises(ValueError, match=r"conv\.weight: made sparse, but not among"):
        examine(checkpoint, None)


@pytest.mark.parametrize(
    "content", [{"state_dict": 5}, {"state_dict": {}, "callbacks": []}, {"state_dict": {}, "sparse_weights": 1}]
)
def test_malformed_checkpoints_are_told(tmp_path, content):
    """Loadable, but not what it says it is."""
    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "odd.ckpt")
