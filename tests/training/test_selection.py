"""Which weights become sparse; and that every other one says why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_nm.patterns import NM
from lightning_nm.training import Selection, Sparsifier, select


class Tied(nn.Module):
    """An embedding or a Linear, and a head that shares its weight."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.head = nn.Linear(8, 8)
        self.head.weight = first.weight


class Network(nn.Module):
    """A stem of 3 channels, two stages, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.stages = nn.ModuleList([nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(2)])
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)


WEIGHTS = ["stages.0.0.weight", "stages.1.0.weight", "body.weight", "head.weight"]


def selected(selection: Selection) -> list[str]:
    return [weight.name for weight in selection.weights]


def reasons(selection: Selection) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in selection.skipped}


# -- by default ---------------------------------------------------------------------------------------------


def test_by_default_every_gemm_weight_that_fits() -> None:
    """Everything that a GEMM reads is selected, in the model's order."""
    assert selected(select(Network())) == WEIGHTS


def test_a_size_that_does_not_divide_is_skipped_with_its_size() -> None:
    """The stem's 3 channels make no group of 4: never padded, never straddled, and said so."""
    assert reasons(select(Network()))["stem.weight"] == (
        "the 3 inputs that one output sums over are not a multiple of 4"
    )


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Conv2d(8, 8, 3, groups=2), True),
        (nn.Conv2d(8, 8, 3, groups=4), False),
        (nn.ConvTranspose2d(8, 8, 3, groups=2), True),
        (nn.ConvTranspose2d(8, 8, 3, groups=4), False),
        (nn.ConvTranspose1d(12, 12, 3, groups=2), False),
    ],
    ids=["grouped", "grouped too fine", "transposed", "transposed too fine", "transposed straddling"],
)
def test_groups_never_straddle_convolution_groups(layer: nn.Module, fits: bool) -> None:
    """A group of M that would cross from one convolution group into the next is refused."""
    assert selected(select(layer)) == ["weight"] * fits


def test_attention_projections_are_selected() -> None:
    """Both the packed projection and the output's."""
    assert selected(select(nn.MultiheadAttention(8, 2))) == ["in_proj_weight", "out_proj.weight"]


def test_recurrent_weights_are_selected() -> None:
    """Input, recurrent and projection weights of all layers and directions."""
    lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True, proj_size=4)
    matrices = [name for name, param in lstm.named_parameters() if param.dim() == 2]
    assert len(matrices) == 12
    assert selected(select(lstm)) == matrices


def test_skipped_lines_show_the_shape() -> None:
    """A report can show what stays dense."""
    assert [s.shape for s in select(Network()).skipped if s.name == "stem.weight"] == [(8, 3, 3, 3)]


def test_a_lazy_layer_has_no_shape_yet() -> None:
    """A lazy parameter is skipped, not asked for its shape."""
    assert [(s.name, s.shape) for s in select(nn.LazyLinear(8)).skipped] == [("weight", ()), ("bias", ())]


def test_an_initialised_lazy_layer_is_selected() -> None:
    """Once its shape is known, a lazy layer is a layer like any other."""
    layer = nn.LazyLinear(8)
    layer(torch.ones(1, 4))
    assert selected(select(layer)) == ["weight"]


def test_a_weight_that_needs_no_gradient_is_selected() -> None:
    """``requires_grad`` is about training, not about sparsity."""
    layer = nn.Linear(8, 4).requires_grad_(False)
    assert selected(select(layer)) == ["weight"]


# -- every parameter once ---------------------------------------------------------------------------------------

ZOO: dict[str, Callable[[], nn.Module]] = {
    "network": Network,
    "transformer": lambda: nn.Transformer(8, 2, 1, 1, 16),
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=12, vdim=16, add_bias_kv=True),
    "lstm": lambda: nn.LSTM(8, 6, 2, bidirectional=True, proj_size=4),
    "cells": lambda: nn.ModuleList([nn.LSTMCell(8, 8), nn.GRUCell(8, 6), nn.RNNCell(6, 8)]),
    "tied linears": lambda: Tied(nn.Linear(8, 8)),
    "tied embedding": lambda: Tied(nn.Embedding(8, 8)),
    "one layer twice": lambda: nn.Sequential(*[nn.Linear(8, 8)] * 2),
    "lazy": lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d()),
    "parametrised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(8, 8)),
    "list of parameters": lambda: nn.ParameterList([torch.ones(8, 8), torch.ones(8)]),
    "odd": lambda: nn.ModuleList([nn.Bilinear(4, 4, 4), nn.EmbeddingBag(8, 8), nn.PReLU(4), nn.GroupNorm(2, 4)]),
    "nothing": nn.ReLU,
}


@pytest.mark.parametrize("kind", ZOO)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*batch_first.*")
def test_every_parameter_is_selected_or_skipped_once(kind: str) -> None:
    """No weight is left dense without a line that says so (promise 5)."""
    model = ZOO[kind]()
    selection = select(model)
    listed = selected(selection) + list(reasons(selection))
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())


GLOBS = st.sampled_from(["*", "stem", "stages", "stages.0*", "stages.?.0", "body", "head.weight", "*.bias", "nowhere"])


@settings(max_examples=40, deadline=None)
@given(
    include=st.none() | st.lists(GLOBS, max_size=2),
    ignore=st.lists(GLOBS, max_size=2),
    overrides=st.dictionaries(GLOBS, st.sampled_from([None, "1:8", "3:4"]), max_size=2),
    last=st.booleans(),
)
def test_every_parameter_is_listed_once_whatever_is_asked_for(
    include: list[str] | None, ignore: list[str], overrides: dict[str, str | None], last: bool
) -> None:
    """No combination of rules loses a parameter, lists it twice or leaves out a reason (promise 5)."""
    model = Network()
    selection = select(model, include=include, ignore=ignore, overrides=overrides, ignore_last_linear=last)
    listed = selected(selection) + list(reasons(selection))
    assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
    assert all(reasons(selection).values())


@settings(max_examples=40, deadline=None)
@given(ignore=st.lists(GLOBS, max_size=2), include=st.none() | st.lists(GLOBS, max_size=2))
def test_globs_that_meet_nothing_are_unmatched(ignore: list[str], include: list[str] | None) -> None:
    """A glob counts as matched even where another rule decides; ``nowhere`` never does."""
    selection = select(Network(), include=include, ignore=ignore)
    assert selection.unmatched == ["nowhere"] * ("nowhere" in [*ignore, *(include or [])])


# -- what the user asks for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("body.weight", ["body.weight"]),
        ("body", ["body.weight"]),
        ("stages", WEIGHTS[:2]),
        ("stages.1", WEIGHTS[1:2]),
        ("stages.*.0", WEIGHTS[:2]),
        ("*.0.*", WEIGHTS[:2]),
        ("*d*", ["body.weight", "head.weight"]),
        ("*", WEIGHTS),
    ],
)
def test_include(glob: str, expected: list[str]) -> None:
    """A glob covers parameters by their own name and by that of every module above them."""
    assert selected(select(Network(), include=[glob])) == expected


def test_include_of_several_globs() -> None:
    """One match is enough."""
    assert selected(select(Network(), include=["body", "head"])) == ["body.weight", "head.weight"]


def test_a_prefix_is_no_match() -> None:
    """``stage`` is not the module ``stages``."""
    assert select(Network(), include=["stage"]).unmatched == ["stage"]


def test_ignore() -> None:
    """What a glob of ``ignore`` matches stays dense, and the reason quotes the glob."""
    selection = select(Network(), ignore=["sta*"])
    assert selected(selection) == ["body.weight", "head.weight"]
    assert reasons(selection)["stages.0.0.weight"] == "ignored by 'sta*'"


def test_ignore_goes_before_include() -> None:
    """Of two contradicting rules the cautious one wins."""
    assert selected(select(Network(), include=["body", "head"], ignore=["head"])) == ["body.weight"]


def test_ignore_last_linear() -> None:
    """The classifier's head stays dense as in the paper."""
    selection = select(Network(), ignore_last_linear=True)
    assert selected(selection) == WEIGHTS[:3]
    assert "ignore_last_linear" in reasons(selection)["head.weight"]


def test_overrides_choose_the_pattern() -> None:
    """A weight can have a pattern of its own."""
    patterns = {w.name: w.pattern for w in select(Network(), overrides={"body": "1:8"}).weights}
    assert patterns == {**dict.fromkeys(WEIGHTS, NM(2, 4)), "body.weight": NM(1, 8)}


def test_the_last_override_decides() -> None:
    """From general to special, as one writes them."""
    patterns = {w.name: w.pattern for w in select(Network(), overrides={"*": "1:4", "body": "1:8"}).weights}
    assert patterns == {**dict.fromkeys(WEIGHTS, NM(1, 4)), "body.weight": NM(1, 8)}


def test_an_override_of_none_leaves_dense() -> None:
    """Dense by name, and the reason quotes the glob."""
    selection = select(Network(), overrides={"body": None})
    assert "body.weight" not in selected(selection)
    assert "'body'" in reasons(selection)["body.weight"]


@pytest.mark.parametrize(
    "rule", [{"ignore": ["head"]}, {"include": ["body"]}, {"ignore_last_linear": True}, {"module_types": ["Conv2d"]}]
)
def test_overrides_go_before_every_other_rule(rule: dict[str, object]) -> None:
    """A weight named by an override gets its pattern."""
    selection = select(Network(), overrides={"head": "1:4"}, **rule)  # type: ignore[arg-type]
    assert ("head.weight", NM(1, 4)) in [(w.name, w.pattern) for w in selection.weights]


def test_an_override_that_does_not_fit_is_skipped_with_its_pattern() -> None:
    """An override cannot make a weight straddle."""
    assert "multiple of 16" in reasons(select(Network(), overrides={"body": "2:16"}))["body.weight"]


@pytest.mark.parametrize(
    "kind",
    [nn.Linear, "Linear", "torch.nn.modules.linear.Linear", "torch.nn.Linear"],
    ids=["class", "name", "home", "public name"],
)
def test_module_types(kind: str | type[nn.Module]) -> None:
    """Layer types can be given as classes, by their name, and by the path one imports them from."""
    assert selected(select(Network(), module_types=[kind])) == ["body.weight", "head.weight"]


def test_module_types_include_subclasses() -> None:
    """Wrappers that derive from a layer (FSDP2, your own) are still that layer."""
    wrapped = type("Wrapped", (nn.Linear,), {})(8, 4)
    assert selected(select(wrapped, module_types=["Linear"])) == ["weight"]


def test_an_unread_pattern_is_refused() -> None:
    """Bad input gets a ValueError that names the cause (promise 7)."""
    with pytest.raises(ValueError, match="'2-4'"):
        select(Network(), "2-4")


# -- shared weights ---------------------------------------------------------------------------------------------


def test_tied_linears_are_one_weight() -> None:
    """A parameter that two Linears share is selected once."""
    assert selected(select(Tied(nn.Linear(8, 8)))) == ["first.weight"]


@pytest.mark.parametrize("glob", ["first", "head"])
def test_a_tied_weight_answers_to_both_names(glob: str) -> None:
    """A glob may name either of the layers."""
    assert selected(select(Tied(nn.Linear(8, 8)), ignore=[glob])) == []


@pytest.mark.parametrize("glob", ["0", "1"])
def test_a_layer_in_two_places_answers_to_both_names(glob: str) -> None:
    """A module that is registered twice can be named by either place."""
    assert selected(select(ZOO["one layer twice"](), ignore=[glob])) == []


def test_a_weight_tied_to_an_embedding_stays_dense() -> None:
    """A lookup table is not made sparse because a head shares it; the reason names it."""
    selection = select(Tied(nn.Embedding(8, 8)))
    assert selected(selection) == []
    assert "first.weight (a lookup table" in reasons(selection)["first.weight"]


@pytest.mark.parametrize("glob", ["first", "head"])
def test_an_override_makes_a_tied_embedding_sparse(glob: str) -> None:
    """Asked for by name, by either name, it is."""
    assert selected(select(Tied(nn.Embedding(8, 8)), overrides={glob: "2:4"})) == ["first.weight"]


def test_layers_that_sum_over_different_dimensions_cannot_share_sparsely() -> None:
    """No pattern can hold along two dimensions at once; the reason names both layers."""
    model = nn.ModuleList([nn.Conv1d(8, 8, 1), nn.ConvTranspose1d(8, 8, 1)])
    model[1].weight = model[0].weight
    selection = select(model)
    assert selected(selection) == []
    assert "['0.weight', '1.weight']" in reasons(selection)["0.weight"]


# -- refusing a selection -------------------------------------------------------------------------------------------


def test_require_returns_a_good_selection() -> None:
    """It can be chained."""
    selection = select(Network())
    assert selection.require() is selection


@pytest.mark.parametrize(
    "rule",
    [
        {"include": ["body", "haed"]},
        {"ignore": ["haed"]},
        {"overrides": {"haed": None}},
        {"module_types": ["Linear", "haed"]},
    ],
)
def test_require_names_what_met_nothing(rule: dict[str, object]) -> None:
    """A typo would leave layers dense, or make them sparse, in silence."""
    with pytest.raises(ValueError, match=r"\['haed'\].*body\.weight"):
        select(Network(), **rule).require()  # type: ignore[arg-type]


def test_require_refuses_an_empty_selection_with_its_reasons() -> None:
    """Selecting nothing is an error that tells why of each weight (promise 5)."""
    with pytest.raises(ValueError, match=r"(?s)0\.weight \[8, 3\]: the 3 inputs.*1\.weight \[8, 8\]: a lookup table"):
        select(nn.ModuleList([nn.Linear(3, 8), nn.Embedding(8, 8)])).require()


def test_require_of_a_model_without_weights() -> None:
    """There are no reasons to list then."""
    with pytest.raises(ValueError, match="has no weights"):
        select(nn.ReLU()).require()


def test_a_sparsifier_refuses_an_empty_selection() -> None:
    """As its docstring says: a run that would sparsify nothing does not start (promise 5)."""
    with pytest.raises(ValueError, match="no weight was selected"):
        Sparsifier(select(nn.Linear(3, 8)))


def test_groups_of_a_shared_transposed_weight_straddle_no_conv_group() -> None:
    """Two layers that share a weight with spans of 6 and 4 leave room for groups of 2 only."""
    model = nn.ModuleList([nn.ConvTranspose1d(12, 4, 1, groups=2), nn.ConvTranspose1d(12, 6, 1, groups=3)])
    model[1].weight = model[0].weight
    assert selected(select(model, "2:4")) == []
    assert selected(select(model, "1:2")) == ["0.weight"]


@pytest.mark.parametrize("name", ["include", "ignore", "module_types"])
def test_a_string_where_a_list_belongs_is_refused(name: str) -> None:
    """It would be read letter by letter (promise 7)."""
    with pytest.raises(ValueError, match=f"{name} takes a list"):
        select(Network(), **{name: "head"})
