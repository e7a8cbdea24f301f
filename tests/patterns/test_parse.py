"""Patterns as people write them."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lightning_nm.patterns import NM, Block1xN, PatternText, Unstructured, parse


@pytest.mark.parametrize(
    ("written", "pattern"),
    [
        ("2:4", NM(2, 4)),
        (" 2 : 4 ", NM(2, 4)),
        ("2:64", NM(2, 64)),
        ("12:16", NM(12, 16)),
        ([2, 4], NM(2, 4)),
        ((2, 4), NM(2, 4)),
        (NM(2, 4), NM(2, 4)),
        (124, NM(2, 4)),
        (76, NM(1, 16)),
        (248, NM(4, 8)),
        (PatternText("2:4"), NM(2, 4)),
        ("2:4T,AT_MOST,Fast", NM(2, 4, transposable=True, at_most=True, solver="fast")),
        ("unstructured@1e-5", Unstructured(1e-5)),
    ],
    ids=repr,
)
def test_what_can_be_read(written: Any, pattern: NM) -> None:
    """Every form in which a pattern arrives."""
    assert parse(written) == pattern


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (1, 16), (8, 16), (1, 1), (10, 59), (2, 60), (16, 64)])
@pytest.mark.parametrize("quote", ["", '"'], ids=["unquoted", "quoted"])
def test_yaml_as_it_is_written_in_configs(quote: str, n: int, m: int) -> None:
    """YAML 1.1 reads an unquoted 2:4 in base 60; quoted or not, it is the same pattern."""
    loaded = yaml.safe_load(f"pattern: {quote}{n}:{m}{quote}")
    assert parse(loaded["pattern"]) == NM(n, m)


BAD = ["2:5x", "", "2", "2:", "2/4", "2.0:4", "-1:4", "1:2:3", None, True, 4, 59, -124, 2.4, b"2:4", {2, 4}, {2: 4}]
BAD += [[2], [2, 4, 8], [2.0, 4], [True, 4], ["2", "4"]]


@pytest.mark.parametrize("written", BAD, ids=repr)
def test_what_cannot_be_read(written: Any) -> None:
    """The message shows what was written, and how to write it."""
    with pytest.raises(ValueError) as error:
        parse(written)
    assert f"{written!r} is not a sparsity pattern" in str(error.value)
    assert "for example '2:4'" in str(error.value)


@pytest.mark.parametrize(("written", "shown"), [("5:4", "5:4"), ("0:4", "0:4"), ([5, 4], "5:4"), ([-1, 4], "-1:4")])
def test_pairs_that_are_no_pattern(written: Any, shown: str) -> None:
    """The message shows the rule and the pair."""
    with pytest.raises(ValueError, match=f"0 < N <= M; got {shown}"):
        parse(written)


@pytest.mark.parametrize("written", ["5:4", "1:0"])
def test_unquoted_pairs_that_are_no_pattern(written: str) -> None:
    """The message shows what stands in the YAML file, not the 304 or 60 that it was read as."""
    with pytest.raises(ValueError, match=f"0 < N <= M; got {written}"):
        parse(yaml.safe_load(written))


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 99))
def test_every_sparsity_is_read_back(sparsity: float, n: int) -> None:
    """However it is written."""
    for pattern in (Block1xN(n, sparsity), Unstructured(sparsity)):
        assert parse(str(pattern)) == pattern


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("2:4T,magic", "there is no solver 'magic'"),
        ("2:4T,exact,fast", "names more than one solver: exact, fast"),
        ("2:4,at_most", "write 2:4T"),
        ("2:4T,", "not a sparsity pattern"),
    ],
)
def test_options_that_cannot_be_read(written: str, message: str) -> None:
    """The message says which."""
    with pytest.raises(ValueError, match=message):
        parse(written)


@pytest.mark.parametrize("written", ["2:4", " 2 : 4 ", [2, 4], 124, NM(2, 4)], ids=repr)
def test_pattern_text_is_the_written_form(written: Any) -> None:
    """One spelling in saved configs, whatever came in."""
    assert PatternText(written) == "2:4"


def test_pattern_text_is_checked() -> None:
    """A typo on the command line stops there."""
    with pytest.raises(ValueError, match="'2:5x' is not a sparsity pattern"):
        PatternText("2:5x")


def test_pattern_text_survives_pickling() -> None:
    """Hyperparameters are sent to other processes."""
    copy = pickle.loads(pickle.dumps(PatternText("2:4")))
    assert (copy, type(copy)) == ("2:4", PatternText)
