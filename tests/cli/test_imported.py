"""Classes of the user's by their import paths, with their arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from lightning_nm.cli.imported import imported, options
from lightning_nm.patterns import PatternText


class Net(nn.Module):
    def __init__(self, width: int, act: nn.Module | None = None, pattern: PatternText = PatternText("1:2"), odd=1):
        super().__init__()


def build(width: int, names: list[str] | None = None):
    return nn.Linear(width, width)


@pytest.mark.parametrize(
    ("factory", "words", "found"),
    [
        (Net, [], {}),
        (Net, ["--model.width", "3"], {"width": 3}),
        (Net, ["--model.width=3", "--model.odd=[1, 2]"], {"width": 3, "odd": [1, 2]}),
        (Net, ["--model.pattern", "2:4"], {"pattern": "2:4"}),
        (build, ["--model.names=[a, b]"], {"names": ["a", "b"]}),
    ],
)
def test_only_what_is_given(factory, words, found):
    """By its type, without defaults: the rest is in the checkpoint."""
    assert options({"model": factory}, words) == {"model": found}


def test_arguments_that_are_objects_are_made():
    """With arguments of their own."""
    made = options({"model": Net}, ["--model.act=torch.nn.ReLU", "--model.act.inplace=true"])["model"]["act"]
    assert isinstance(made, nn.ReLU)
    assert made.inplace


def test_each_factory_gets_its_own():
    """The same name twice."""
    found = options({"model": Net, "data": build}, ["--data.width=2", "--model.width=1"])
    assert found == {"model": {"width": 1}, "data": {"width": 2}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.depth=3"], "nrecognized arguments: --model.depth=3"),
        (["--modle.width=3"], "nrecognized arguments: --modle.width=3"),
        (["--model.width=wide"], '"model.width": Expected a'),
    ],
)
def test_bad_arguments_are_one_line(words, message):
    """They name the argument."""
    with pytest.raises(ValueError, match=message) as raised:
        options({"model": Net}, words)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Net", "write one like my_file.Net"),
        ("no_such.Net", "no_such.Net cannot be imported: No module named 'no_such'"),
        ("pathlib.Nothing", "has no attribute 'Nothing'"),
        ("math.pi", "is a float, not a class or function"),
    ],
)
def test_bad_paths_are_told(path, message):
    """Each with its reason."""
    with pytest.raises(ValueError, match=message):
        imported(path)


def test_a_path_is_imported():
    """From any module."""
    assert imported("pathlib.Path") is Path


class Wide(Net):
    def __init__(self, depth: int, **kwargs):
        super().__init__(**kwargs)


def test_arguments_that_are_handed_on():
    """Those of the class above, too; and none is asked for that was not given."""
    assert options({"model": Wide}, ["--model.depth=2"]) == {"model": {"depth": 2}}
    assert options({"model": Wide}, ["--model.width=3"]) == {"model": {"width": 3}}
