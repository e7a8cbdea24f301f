"""|W_ij| * ||X_j||, against sums in plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_nm import select
from lightning_nm.conversion import activation_scores, one_shot
from lightning_nm.training import register_layer
from tests.conversion.networks import LAYERS, Own, batches


def scores_of(model: nn.Module, data: list[Tensor], pattern: str = "2:4", **rules: object):
    return activation_scores(model, select(model, pattern, **rules), data)


def norms(data: list[Tensor], dim: int) -> Tensor:
    features = range(data[0].shape[dim])
    return torch.stack([torch.cat([x.select(dim, i).flatten() for x in data]).norm() for i in features])


@pytest.mark.parametrize("layer", ["linear", "no bias"])
def test_linear(layer: str) -> None:
    """Sun et al., eq. 1: features in the last dimension, whatever stands before them."""
    model, data = LAYERS[layer][0](), batches(LAYERS[layer][1])
    torch.testing.assert_close(scores_of(model, data)["weight"], model.weight.abs() * norms(data, -1))


def test_a_single_sample_without_a_batch() -> None:
    """Features and nothing else."""
    model, data = nn.Linear(16, 8), batches((16,))
    torch.testing.assert_close(scores_of(model, data)["weight"], model.weight.abs() * norms(data, -1))


def test_linear_with_inputs_first() -> None:
    """A [in, out] weight is scaled along dimension 0."""
    model, data = Own(16, 4), batches((8, 16))
    torch.testing.assert_close(scores_of(model, data)["weight"], model.weight.abs() * norms(data, -1)[:, None])


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution(groups: int) -> None:
    """Each weight by the norm of the input channel that it reads, of its own group."""
    model, data = nn.Conv2d(16, 8, 3, groups=groups), batches((2, 16, 5, 5))
    channels, score = norms(data, 1), scores_of(model, data)["weight"]
    for out in range(8):
        for i in range(16 // groups):
            channel = out // (8 // groups) * (16 // groups) + i
            torch.testing.assert_close(score[out, i], model.weight[out, i].abs() * channels[channel])


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_convolution(groups: int) -> None:
    """Input channels stand in dimension 0."""
    model, data = nn.ConvTranspose1d(16, 8, 3, groups=groups), batches((2, 16, 5))
    torch.testing.assert_close(scores_of(model, data)["weight"], model.weight.abs() * norms(data, 1)[:, None, None])


@pytest.mark.parametrize("separate", [False, True])
def test_attention_projections(separate: bool) -> None:
    """Query, key and value by their own inputs; what the attention computes inside has no score."""

    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, kdim=4 if separate else 8, vdim=4 if separate else 8)

        def forward(self, x: Tensor) -> Tensor:
            width = 4 if separate else 8
            return self.attend(x, x[..., :width] * 2, value=x[..., :width] * 3)[0]

    model, data = Cross(), batches((5, 2, 8))
    scores = scores_of(model, data)
    norm = norms(data, -1)
    width = norm[: 4 if separate else 8]
    if separate:
        parts = [getattr(model.attend, f"{name}_proj_weight") for name in "qkv"]
        found = [scores[f"attend.{name}_proj_weight"] for name in "qkv"]
    else:
        parts, found = model.attend.in_proj_weight.chunk(3), scores["attend.in_proj_weight"].chunk(3)
    for weight, score, expected in zip(parts, found, (norm, 2 * width, 3 * width), strict=True):
        torch.testing.assert_close(score, weight.abs() * expected)
    assert scores["attend.out_proj.weight"] == "its module was not called on the calibration data"


def test_recurrent_layers() -> None:
    """The first layer's inputs are seen, hidden states are not: these go by magnitude, and the report says so."""
    model, data = nn.LSTM(8, 8, 2), batches((5, 2, 8))
    selection = select(model, "2:4")
    scores = activation_scores(model, selection, data)
    torch.testing.assert_close(scores["weight_ih_l0"], model.weight_ih_l0.abs() * norms(data, -1))
    remarks = {weight.name: weight.remark for weight in one_shot(selection, scores).weights}
    hidden = "by magnitude: its inputs are hidden states, computed inside the module"
    assert remarks == {"weight_ih_l0": "", "weight_hh_l0": hidden, "weight_ih_l1": hidden, "weight_hh_l1": hidden}


def test_packed_sequences_and_cells() -> None:
    """Padding counts for nothing; a cell's input is its first argument."""
    x = torch.randn(3, 2, 8)
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 1]))
    scores = scores_of(model := nn.GRU(8, 8), [packed])
    torch.testing.assert_close(scores["weight_ih_l0"], model.weight_ih_l0.abs() * norms([packed.data], -1))
    scores = scores_of(cell := nn.GRUCell(8, 8), [x[0]])
    torch.testing.assert_close(scores["weight_ih"], cell.weight_ih.abs() * norms([x[0]], -1))


def test_inputs_that_cannot_be_told_have_no_score() -> None:
    """A layer type of a user's with kernels, and inputs that are no features: a reason, no error."""

    class Taps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv1d(x, self.weight)

    register_layer(Taps, dim=1)
    scores = scores_of(Taps(), batches((2, 8, 8)))
    assert scores == {"weight": "which of its inputs each weight of this layer type multiplies is not known"}


def test_uses_of_a_shared_weight_add_up() -> None:
    """One that cannot be scored leaves none."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    x = batches((4, 8), 1)
    seen = [x[0], model[0](x[0]).detach()]
    torch.testing.assert_close(scores_of(model, x)["0.weight"], model[0].weight.abs() * norms(seen, -1))
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    scores = scores_of(model, [torch.tensor([1, 2])], overrides={"1.weight": "2:4"})
    assert scores == {"0.weight": "the last dimension of its input is not the 8 features that it sums over"}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_type_is_scored_or_says_why(layer: str) -> None:
    """Never in silence, and scores fit `one_shot`."""
    make, shape = LAYERS[layer]
    model = make()
    selection = select(model, "2:4")
    scores = activation_scores(model, selection, batches(shape))
    assert set(scores) == {weight.name for weight in selection.weights}
    assert any(isinstance(score, Tensor) for score in scores.values())
    one_shot(selection, scores)
    assert not any(weight.pattern.violations(weight.param, dim=weight.dim) for weight in selection.weights)


def test_a_loud_feature_is_kept() -> None:
    """Where magnitudes are equal the inputs decide; the model itself is not changed."""
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.fill_(0.5)
    before = model.weight.detach().clone()
    scores = scores_of(model, [torch.tensor([[1.0, 3.0, 2.0, 0.0]])], "1:4")
    assert torch.equal(model.weight, before)
    one_shot(select(model, "1:4"), scores)
    assert torch.equal(model.weight != 0, torch.tensor([[False, True, False, False]] * 2))
