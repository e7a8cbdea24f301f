"""Masks in place, by magnitude or by scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_nm import select
from lightning_nm.conversion import one_shot
from tests.conversion.networks import LAYERS, mlp, values
from tests.oracles import nm_mask_by_hand


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_type_is_masked_by_magnitude(layer: str) -> None:
    """What is largest in each group is kept as it was, the rest is zero, and what is not selected is untouched."""
    model = LAYERS[layer][0]()
    before, selection = values(model), select(model, "1:4")
    one_shot(selection)
    dims = {weight.name: weight.dim for weight in selection.weights}
    for name, now in model.state_dict().items():
        kept = nm_mask_by_hand(before[name], 1, 4, dims[name]) if name in dims else torch.tensor(True)
        assert torch.equal(now, torch.where(kept, before[name], 0.0)), name


def test_each_weight_has_its_own_pattern() -> None:
    """Overrides, transposable tiles and layers left dense, together in a model."""
    model = mlp(16, 16, 8, 4)
    dense = values(model)
    selection = select(model, "2:4", overrides={"0": "1:4T", "4": None})
    conversion = one_shot(selection)
    assert [str(weight.pattern) for weight in conversion.weights] == ["1:4T", "2:4"]
    for weight in selection.weights:
        assert weight.pattern.violations(weight.param, dim=weight.dim) == 0
        assert torch.equal(weight.param != 0, weight.pattern.mask(dense[weight.name], dim=weight.dim))
    assert torch.equal(model[4].weight, dense["4.weight"])
    assert [skip.reason for skip in conversion.skipped if skip.name == "4.weight"] == ["left dense by the override '4'"]


def test_tied_weights_stay_tied() -> None:
    """One parameter, one mask."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    assert len(one_shot(select(model, "2:4")).weights) == 1
    assert model[1].weight is model[0].weight
    assert int(model[1].weight.count_nonzero()) == 32


def test_an_unstructured_sparse_model() -> None:
    """Zeros stay zeros, and groups that have few enough weights lose none."""
    model = nn.Linear(16, 8)
    with torch.no_grad():
        model.weight[:, ::4] = 0.0
        model.weight[0] = torch.tensor([1.0, 0.0, 0.0, 2.0] * 4)
    before = model.weight.detach().clone()
    one_shot(select(model, "2:4"))
    assert torch.equal(model.weight[0], before[0])
    assert not model.weight[before == 0].any()


def test_scores_decide_in_place_of_magnitudes() -> None:
    """The kept weights are those of largest score, with their own values."""
    model = nn.Linear(16, 8)
    before, score = model.weight.detach().clone(), torch.randn(8, 16)
    one_shot(select(model, "2:4"), {"weight": score})
    assert torch.equal(model.weight, torch.where(nm_mask_by_hand(score, 2, 4), before, 0.0))


def test_half_precision_weights_take_float32_scores() -> None:
    """The dtype of the score is its own business."""
    model = nn.Linear(16, 8).bfloat16()
    score = torch.randn(8, 16)
    one_shot(select(model, "2:4"), {"weight": score})
    assert model.weight.dtype == torch.bfloat16
    assert torch.equal(model.weight != 0, nm_mask_by_hand(score, 2, 4))


def test_a_reason_in_place_of_a_score_is_shown() -> None:
    """Magnitude serves, and the report says so."""
    model, other = nn.Linear(8, 4), nn.Linear(8, 4)
    other.load_state_dict(model.state_dict())
    converted = one_shot(select(model, "2:4"), {"weight": "nobody knows its inputs"}).weights[0]
    assert converted.remark == "by magnitude: nobody knows its inputs"
    one_shot(select(other, "2:4"))
    assert torch.equal(model.weight, other.weight)


def test_retained_magnitude() -> None:
    """Share of the sum of magnitudes; all of it where there is none."""
    model = nn.Sequential(nn.Linear(4, 1), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
        model[1].weight.zero_()
    assert [weight.retained for weight in one_shot(select(model, "1:4")).weights] == [pytest.approx(0.4), 1.0]


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_weight_is_named_and_nothing_is_changed(bad: float, scored: bool) -> None:
    """The first layers are not masked when the last cannot be."""
    scores = {"2.weight": torch.ones(4, 8)} if scored else None
    model = mlp(8, 8, 4)
    with torch.no_grad():
        model[2].weight[0, 0] = bad
    before = values(model)
    with pytest.raises(ValueError, match=r"^2\.weight: .*1 NaN or infinite"):
        one_shot(select(model, "2:4"), scores)
    assert torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"0.weight": torch.ones(2, 2)}, r"0\.weight: its score has shape \[2, 2\], the weight \[8, 8\]"),
        ({"weight": torch.ones(8, 8)}, r"scores of \['weight'\], which are not among the selected"),
        ({"0.weight": torch.full((8, 8), torch.nan)}, r"0\.weight: .*64 NaN"),
    ],
)
def test_bad_scores_are_refused(scores: dict[str, torch.Tensor], message: str) -> None:
    """Before anything is masked."""
    model = mlp(8, 8, 4)
    before = values(model)
    with pytest.raises(ValueError, match=message):
        one_shot(select(model, "2:4"), scores)
    assert torch.equal(model[2].weight, before["2.weight"])


def test_nothing_selected_and_unmatched_globs_are_refused() -> None:
    """A conversion that would convert nothing is an error."""
    with pytest.raises(ValueError, match="no weight was selected"):
        one_shot(select(mlp(6, 6), "2:4"))
    with pytest.raises(ValueError, match="match no parameter"):
        one_shot(select(mlp(8, 8), "2:4", ignore=["haed"]))
