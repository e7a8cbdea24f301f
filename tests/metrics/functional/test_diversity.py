"""Mask diversity: numbers of masks in logs, against the paper's figures and against counting them one by one."""

from __future__ import annotations

from itertools import product
from math import comb, log, log2, log10

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_nm.metrics.functional import mask_diversity
from lightning_nm.patterns import NM, Pattern


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    return {key: value.item() for key, value in values.items()}


def by_enumeration(pattern: Pattern, shape: tuple[int, int], kept: int) -> int:
    """Of all masks of this shape, those that keep ``kept`` entries and violate nothing."""
    every = torch.tensor(list(product((0.0, 1.0), repeat=shape[0] * shape[1]))).view(-1, *shape)
    return sum(pattern.violations(mask) == 0 for mask in every if mask.sum() == kept)


@pytest.mark.parametrize(
    ("pattern", "shape", "count"),
    [
        (NM(2, 4), (1, 8), 36),
        (NM(1, 4), (3, 4), 64),
        (NM(1, 2), (2, 4), 16),
        (NM(1, 2, transposable=True), (2, 4), 4),
        (NM(1, 3, transposable=True), (3, 3), 6),
        (NM(4, 4), (2, 4), 1),
    ],
    ids=str,
)
def test_masks_counted_one_by_one(pattern: NM, shape: tuple[int, int], count: int) -> None:
    """The logarithm of what there is."""
    assert by_enumeration(pattern, shape, int(shape[0] * shape[1] * pattern.density)) == count
    assert mask_diversity(pattern, shape)["log"].item() == pytest.approx(log(count), rel=1e-12)


@pytest.mark.parametrize(
    ("pattern", "exact", "count"),
    [
        ("2:4", True, 2.8e12),
        ("4:8", True, 5.8e14),
        ("4:8T", False, 1.76e13),
        ("4:8T", True, 116_963_796_250),
        ("2:4T", False, 144.0**4),
        ("2:4T", True, 90.0**4),
    ],
)
def test_figures_of_the_paper(pattern: str, exact: bool, count: float) -> None:
    """Of one 8 x 8 block: 2.8e12 (2:4) and 1.7e13 (4:8-T by its formula)."""
    values = mask_diversity(pattern, (8, 8), exact=exact)
    assert values["log10"].item() == pytest.approx(log10(count), abs=0.01)


@given(m=st.integers(1, 16), data=st.data(), rows=st.integers(1, 9), groups=st.integers(1, 9))
def test_the_three_numbers_are_one(m: int, data: st.DataObject, rows: int, groups: int) -> None:
    """Natural, decimal, and binary per weight."""
    n = data.draw(st.integers(1, m))
    expected = rows * groups * log(comb(m, n))
    assert numbers(mask_diversity([n, m], (rows, groups * m))) == pytest.approx(
        {"log": expected, "log10": expected / log(10), "bits_per_weight": log2(comb(m, n)) / m}, rel=1e-12
    )


def test_bits_per_weight_do_not_depend_on_the_size() -> None:
    """So layers can be compared; half of the weights can have no more than one bit each."""
    small, large = (mask_diversity("4:8T", (size, size))["bits_per_weight"] for size in (8, 1024))
    assert small.item() == pytest.approx(large.item(), rel=1e-12)
    order = [mask_diversity(p, (8, 8))["bits_per_weight"].item() for p in ("2:4T", "4:8T", "2:4", "4:8")]
    assert order == sorted(order)
    assert order[-1] < 1


@pytest.mark.parametrize("weight", [torch.zeros(8, 16), nn.Linear(16, 8).weight, [8, 16], torch.Size([8, 16])])
def test_a_weight_is_its_shape(weight: object) -> None:
    """Tensors, parameters and shapes."""
    assert mask_diversity("2:4", weight) == mask_diversity("2:4", (8, 16))


def test_a_kernel_has_masks_at_every_tap() -> None:
    """Tiles lie across outputs and inputs, one for each tap."""
    assert mask_diversity("2:4T", (4, 8, 3, 3))["log"].item() == pytest.approx(18 * log(90))


def test_transposed_convolutions_sum_over_dimension_0() -> None:
    """The number of groups is the same along either dimension."""
    assert mask_diversity("2:4", (8, 3)) == mask_diversity("2:4", (3, 8))


def test_layers_by_name_are_reported_one_by_one() -> None:
    """Each layer has the numbers that it has alone."""
    weights = {"fc1": (8, 16), "fc2": torch.zeros(4, 8)}
    values = mask_diversity("2:4T", weights)
    for name, weight in weights.items():
        alone = mask_diversity("2:4T", weight)
        assert {key: values[f"{name}/{key}"] for key in alone} == alone


def test_layers_together_have_the_product() -> None:
    """Each with a pattern of its own: logs add, bits are per weight of all."""
    values = numbers(mask_diversity({"b": "1:4", "a": "2:4"}, {"a": (8, 16), "b": (4, 8)}))
    assert values["log"] == pytest.approx(32 * log(6) + 8 * log(4))
    assert values["bits_per_weight"] == pytest.approx((32 * log2(6) + 8 * log2(4)) / 160)


def test_more_masks_than_any_float() -> None:
    """A large model's number has billions of digits; its logarithms are ordinary numbers."""
    values = mask_diversity("4:8", (2**17, 2**16))
    assert values["log10"].item() == pytest.approx(2**30 * log10(70), rel=1e-12)
    assert {value.dtype for value in values.values()} == {torch.float64}


def test_at_most_allows_more() -> None:
    """7343 tiles of 4 x 4 instead of 90."""
    pattern = NM(2, 4, transposable=True, at_most=True)
    assert mask_diversity(pattern, (4, 4))["log"].item() == pytest.approx(log(7343))


def test_an_empty_weight_has_one_mask() -> None:
    """The empty one; no division by no weights."""
    assert set(numbers(mask_diversity("2:4", (0, 8))).values()) == {0.0}


@pytest.mark.parametrize(
    ("pattern", "weights", "said"),
    [
        ("2:4", (3, 6), r"2:4 does not fit a weight of shape \(3, 6\): the 6 inputs"),
        ("2:4T", (8, 6), r"2:4T does not fit a weight of shape \(8, 6\)"),
        ("2:4", (8,), r"\(8,\): it has fewer than two dimensions"),
        ("2:4", (), "fewer than two dimensions"),
        ("2 of 4", (8, 8), "'2 of 4' is not a sparsity pattern"),
        ("16:32T", (32, 32), "32 x 32 tile.*exact=False"),
        ({"a": "2:4"}, {"b": (4, 4)}, r"\['a'\] and \['b'\]"),
        ({"a": "2:4"}, (4, 4), r"\['a'\] and \[''\]"),
        ("2:4", {}, "no weights"),
    ],
    ids=["inputs", "outputs", "vector", "scalar", "pattern", "too many", "names", "no names", "none"],
)
def test_what_has_no_number(pattern: object, weights: object, said: str) -> None:
    """The message says why."""
    with pytest.raises(ValueError, match=said):
        mask_diversity(pattern, weights)


def test_the_way_out_that_the_message_names() -> None:
    """16:32T by the paper's formula."""
    assert mask_diversity("16:32T", (64, 32), exact=False)["log"].item() > 0
