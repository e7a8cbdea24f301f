"""Which parameters a GEMM reads, and that the dimension named is the one it truly sums over."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm

from lightning_nm.training import Sparsifier, layers, register_layer, select
from lightning_nm.training.layers import Gemm, role
from tests.oracles import nm_mask_by_hand
from tests.training.runs import noise, seeded


class GPT2Linear(nn.Module):
    """What transformers calls Conv1D: a Linear with an ``[in, out]`` weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Conv1D = type("Conv1D", (GPT2Linear,), {"__module__": "transformers.pytorch_utils"})


@pytest.fixture
def rules() -> Iterator[None]:
    """Take back what a test registers."""
    before = list(layers._RULES)
    yield
    layers._RULES[:] = before


# -- the dimension that a GEMM sums over, found by its gradient -------------------------------------------
#
# One output of a GEMM is a sum over one line of the weight along its reduction dimension. So in the
# gradient of one output every such line is filled from end to end or empty, and lines of both kinds
# are there. Along any other dimension lines are filled in part.


def first_output(layer: nn.Module) -> Tensor:
    return layer(noise(2, 8, *[4] * (layer.weight.dim() - 2)))[0, 0].reshape(-1)[0]


def first_attention_output(layer: nn.Module) -> Tensor:
    keys, values = layer.kdim or 8, layer.vdim or 8
    with torch.no_grad():
        layer.out_proj.weight.copy_(torch.eye(8))
    out, _ = layer(noise(3, 2, 8), noise(3, 2, keys, seed=1), noise(3, 2, values, seed=2))
    return out[0, 0, 0]


def first_attention_projection(layer: nn.Module) -> Tensor:
    return layer(noise(3, 2, 8), noise(3, 2, 8, seed=1), noise(3, 2, 8, seed=2))[0][0, 0, 0]


def first_unit(layer: nn.RNNBase) -> Tensor:
    """The first unit of every layer and direction, after one step from a random state."""
    directions = (1 + layer.bidirectional) * layer.num_layers
    hidden = noise(directions, 2, layer.proj_size or 8, seed=1)
    if layer.proj_size:
        with torch.no_grad():
            # so that one output hears one unit
            for name, weight in layer.named_parameters():
                if "weight_hr" in name:
                    weight.copy_(torch.eye(*weight.shape))
    state = (hidden, noise(directions, 2, 8, seed=2)) if isinstance(layer, nn.LSTM) else hidden
    _, last = layer(noise(1, 2, 8), state)
    return (last[0] if isinstance(layer, nn.LSTM) else last)[:, 0, 0].sum()


def first_cell_unit(cell: nn.RNNCellBase) -> Tensor:
    hidden = noise(2, 8, seed=1)
    out = cell(noise(2, 8), (hidden, noise(2, 8, seed=2)) if isinstance(cell, nn.LSTMCell) else hidden)
    return (out[0] if isinstance(out, tuple) else out)[0, 0]


GEMMS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], dict[str, Gemm]]] = {
    "Linear": (lambda: nn.Linear(8, 6), first_output, {"weight": (1, 8)}),
    "GPT-2 Conv1D": (lambda: Conv1D(6, 8), first_output, {"weight": (0, 8)}),
    "Conv1d": (lambda: nn.Conv1d(8, 6, 2), first_output, {"weight": (1, 8)}),
    "Conv2d": (lambda: nn.Conv2d(8, 6, 2), first_output, {"weight": (1, 8)}),
    "Conv3d": (lambda: nn.Conv3d(8, 6, 2), first_output, {"weight": (1, 8)}),
    "grouped Conv2d": (lambda: nn.Conv2d(8, 6, 2, groups=2), first_output, {"weight": (1, 4)}),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(8, 6, 2), first_output, {"weight": (0, 8)}),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(8, 6, 2), first_output, {"weight": (0, 8)}),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(8, 6, 2), first_output, {"weight": (0, 8)}),
    "grouped ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(8, 6, 2, groups=2),
        first_output,
        {"weight": (0, 4)},
    ),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2),
        first_attention_output,
        {"in_proj_weight": (1, 8)},
    ),
    "attention output": (
        lambda: nn.MultiheadAttention(8, 2),
        first_attention_projection,
        {"out_proj.weight": (1, 8)},
    ),
    "attention with kdim and vdim": (
        lambda: nn.MultiheadAttention(8, 2, kdim=12, vdim=16),
        first_attention_output,
        {"q_proj_weight": (1, 8), "k_proj_weight": (1, 12), "v_proj_weight": (1, 16)},
    ),
    "LSTM": (lambda: nn.LSTM(8, 8), first_unit, {"weight_ih_l0": (1, 8), "weight_hh_l0": (1, 8)}),
    "GRU": (lambda: nn.GRU(8, 8), first_unit, {"weight_ih_l0": (1, 8), "weight_hh_l0": (1, 8)}),
    "RNN": (lambda: nn.RNN(8, 8), first_unit, {"weight_ih_l0": (1, 8), "weight_hh_l0": (1, 8)}),
    "bidirectional LSTM": (
        lambda: nn.LSTM(8, 8, bidirectional=True),
        first_unit,
        {
            "weight_ih_l0": (1, 8),
            "weight_hh_l0": (1, 8),
            "weight_ih_l0_reverse": (1, 8),
            "weight_hh_l0_reverse": (1, 8),
        },
    ),
    "LSTM with projection": (
        lambda: nn.LSTM(8, 8, proj_size=4),
        first_unit,
        {"weight_ih_l0": (1, 8), "weight_hh_l0": (1, 4), "weight_hr_l0": (1, 8)},
    ),
    "LSTMCell": (lambda: nn.LSTMCell(8, 8), first_cell_unit, {"weight_ih": (1, 8), "weight_hh": (1, 8)}),
    "GRUCell": (lambda: nn.GRUCell(8, 8), first_cell_unit, {"weight_ih": (1, 8), "weight_hh": (1, 8)}),
    "RNNCell": (lambda: nn.RNNCell(8, 8), first_cell_unit, {"weight_ih": (1, 8), "weight_hh": (1, 8)}),
}

WEIGHTS = [(kind, name) for kind, (_, _, gemms) in GEMMS.items() for name in gemms]


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


@pytest.mark.parametrize(("kind", "name"), WEIGHTS)
def test_roles_of_gemm_weights(kind: str, name: str) -> None:
    """Each layer's reduction dimension, and how many entries along it one output sums over."""
    build, _, gemms = GEMMS[kind]
    module, leaf = owner_of(build(), name)
    found = role(module, leaf, getattr(module, leaf))
    assert isinstance(found, Gemm)
    assert found[:2] == gemms[name]


@pytest.mark.parametrize(
    ("layer", "name", "rows"),
    [
        (nn.Linear(8, 6), "weight", 6),
        (nn.Conv2d(8, 6, 2, groups=2), "weight", 3),
        (nn.ConvTranspose2d(8, 6, 2, groups=2), "weight", 3),
        (nn.MultiheadAttention(8, 2), "in_proj_weight", 8),
        (nn.LSTM(8, 4), "weight_ih_l0", 16),
        (Conv1D(6, 8), "weight", 6),
    ],
)
def test_rows_of_one_gemm(layer: nn.Module, name: str, rows: int) -> None:
    """Outputs that sum over the same inputs: not those of another group or projection."""
    found = role(layer, name, getattr(layer, name))
    assert isinstance(found, Gemm)
    assert found.rows == rows


@pytest.mark.parametrize(("kind", "name"), WEIGHTS)
def test_one_output_sums_over_the_whole_line(kind: str, name: str) -> None:
    """The forward pass itself shows that the GEMM contracts the dimension that groups are laid along."""
    build, output, gemms = GEMMS[kind]
    layer = seeded(build)
    dim, span = gemms[name]
    [grad] = torch.autograd.grad(output(layer), layer.get_parameter(name))
    filled = (grad != 0).movedim(dim, -1).reshape(-1, span)
    assert torch.equal(filled.any(1), filled.all(1))
    assert filled.any()
    assert not filled.all()


@pytest.mark.parametrize(("kind", "name"), WEIGHTS)
def test_masks_lie_along_the_reduction_dimension(kind: str, name: str) -> None:
    """A sparsified layer keeps the two largest of every four along the dimension its GEMM contracts."""
    build, _, gemms = GEMMS[kind]
    layer = seeded(build)
    expected = nm_mask_by_hand(layer.get_parameter(name), 2, 4, dim=gemms[name][0])
    sparsifier = Sparsifier(select(layer, "2:4"))
    assert torch.equal(sparsifier.masks()[name].unpack(), expected)


# -- what is no GEMM's weight -------------------------------------------------------------------------------


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 8))


class Quantised(nn.Linear):
    def __init__(self) -> None:
        super().__init__(8, 8)
        self.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    ("module", "name", "reason"),
    [
        (nn.Linear(8, 4), "bias", "a vector"),
        (nn.BatchNorm1d(8), "weight", "a vector"),
        (nn.LayerNorm((4, 8)), "weight", "normalisation"),
        (nn.Embedding(8, 8), "weight", "lookup table"),
        (nn.EmbeddingBag(8, 8), "weight", "lookup table"),
        (nn.Bilinear(8, 8, 4), "weight", "bilinear"),
        (nn.Conv2d(8, 8, 3, groups=8), "weight", "depthwise"),
        (nn.Conv1d(8, 16, 3, groups=8), "weight", "depthwise"),
        (nn.ConvTranspose2d(8, 8, 3, groups=8), "weight", "depthwise"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "bias_k", "attention bias"),
        (nn.LazyLinear(8), "weight", "lazy"),
        (Quantised(), "weight", "torch.int8"),
        (Unknown(), "table", "Unknown is no known layer type"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_reasons_for_staying_dense(module: nn.Module, name: str, reason: str) -> None:
    """Whatever no GEMM sums over stays dense, and says why (promise 5)."""
    why = role(module, name, getattr(module, name))
    assert isinstance(why, str)
    assert reason in why


def test_an_unknown_layer_points_to_register_layer() -> None:
    """The reason says what to do about it."""
    module = Unknown()
    assert "register_layer" in str(role(module, "table", module.table))


@pytest.mark.parametrize("parametrise", [orthogonal, weight_norm])
def test_a_parametrised_weight_stays_dense(parametrise: Callable[[nn.Module], nn.Module]) -> None:
    """Zeros in the original of a parametrised weight are no zeros in the weight itself."""
    reasons = {s.name: s.reason for s in select(parametrise(nn.Linear(8, 8))).skipped}
    assert "parametris" in reasons["parametrizations.weight.original" + "0" * (parametrise is weight_norm)]


def test_a_single_input_channel_is_no_group() -> None:
    """A stem of one input channel has nothing to choose among either."""
    conv = nn.Conv2d(1, 8, 3)
    assert "single input channel" in str(role(conv, "weight", conv.weight))


# -- layers of your own -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_registered_layers_are_gemms(dim: int) -> None:
    """``register_layer`` makes a layer type selectable along the dimension it names."""
    register_layer(Unknown, dim=dim)
    model = seeded(Unknown)
    expected = nm_mask_by_hand(model.table, 2, 4, dim=dim)
    assert torch.equal(Sparsifier(select(model, "2:4")).masks()["table"].unpack(), expected)


@pytest.mark.usefixtures("rules")
def test_a_registered_layer_goes_before_the_built_in_ones() -> None:
    """A subclass that stores its weight the other way round is believed."""

    class Backward(nn.Linear):
        pass

    register_layer(Backward, dim=0)
    layer = Backward(12, 8)
    assert role(layer, "weight", layer.weight) == Gemm(0, 8, 12)


@pytest.mark.usefixtures("rules")
def test_vectors_of_a_registered_layer_stay_dense() -> None:
    """Only parameters of two dimensions or more become GEMM weights."""
    register_layer(GPT2Linear, dim=0)
    layer = GPT2Linear(6, 8)
    assert "a vector" in str(role(layer, "bias", layer.bias))


def test_a_class_that_is_only_named_conv1d_is_unknown() -> None:
    """GPT-2's Conv1D is told by its package too, so another Conv1D is not read the wrong way round."""
    other = type("Conv1D", (GPT2Linear,), {"__module__": "mine"})(6, 8)
    assert "Conv1D is no known layer type" in str(role(other, "weight", other.weight))


def test_a_registered_dimension_that_a_weight_lacks_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer registered with dim=2 but holding a matrix is skipped with the reason, not an IndexError."""
    from lightning_nm.training import layers

    monkeypatch.setattr(layers, "_RULES", list(layers._RULES))
    register_layer(nn.Linear, dim=2)
    assert "no dimension 2" in role(nn.Linear(4, 4), "weight", torch.empty(4, 4))
