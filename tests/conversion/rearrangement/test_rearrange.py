"""Channels of a model in a better order, in place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_nm import select
from lightning_nm.conversion.rearrangement import Rearrangement, flow, rearrange
from lightning_nm.conversion.rearrangement.spaces import Site, Space
from lightning_nm.patterns import Block1xN
from tests.conversion.rearrangement.networks import NETWORKS, network, outputs


def share(model: nn.Module, pattern: object) -> float:
    """Of the magnitude of all weights that ``pattern`` fits, what it retains."""
    weights = select(model, pattern).weights
    kept = sum(float((w.param.detach().abs() * w.pattern.mask(w.param, dim=w.dim)).sum()) for w in weights)
    return kept / sum(float(w.param.abs().sum()) for w in weights)


def moved(result: Rearrangement) -> set[str]:
    return {name for space in result.spaces if space.moved for name in space.weights}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pattern", ["2:4", "1x4@0.5"])
def test_more_is_retained_and_the_function_stays(name: str, pattern: str) -> None:
    """Of every network; the report's numbers are what select and the pattern say of the model."""
    model, x = network(name)
    before, share_before = copy.deepcopy(model), share(model, pattern)
    result = rearrange(model, x, pattern, budget=4)
    assert moved(result)
    assert result.before == pytest.approx(share_before, rel=1e-5)
    assert result.after == pytest.approx(share(model, pattern), rel=1e-5)
    assert result.after > result.before
    for training in (False, True):
        for a, b in zip(outputs(before, x, training), outputs(model, x, training)):
            assert float((a - b).abs().max()) <= 1e-10 * float(a.abs().max())


@pytest.mark.parametrize("pattern", ["2:4", "2:4T", "2:4V4", "1x4@0.5"])
def test_exchange_retains_no_less_than_sort(pattern: str) -> None:
    """In every space, and neither falls."""
    for name in ("ResNet, bottlenecks", "MobileNet-V2"):
        results = {search: rearrange(*network(name), pattern, search=search) for search in ("sort", "exchange")}
        assert results["exchange"].after >= results["sort"].after >= results["sort"].before
        for result in results.values():
            assert all(s.after >= s.before for s in result.spaces if s.before is not None)


def test_values_move_bit_for_bit_and_parameters_stay_themselves() -> None:
    """The same numbers, the same objects, keys, shapes and dtypes; gradients go along, modes stay."""
    model, x = network("MobileNet-V3")
    model.bfloat16().features[1].eval()
    for param in model.parameters():
        param.grad = param.detach() * 2
    params, before = dict(model.named_parameters()), {key: t.clone() for key, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rearrange(model, x.bfloat16(), "2:4", budget=3)
    after = model.state_dict()
    assert [*after] == [*before]
    for key, old in before.items():
        assert after[key].dtype == old.dtype
        assert torch.equal(after[key].flatten().sort().values, old.flatten().sort().values)
    assert any(not torch.equal(after[key], old) for key, old in before.items())
    assert all(param is params[name] and torch.equal(param.grad, param * 2) for name, param in model.named_parameters())
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert modes == [module.training for module in model.modules()]


def test_batch_norm_statistics_move_along() -> None:
    """Each channel keeps its scale, shift, mean and variance."""
    model, x = network("ResNet, bottlenecks")
    layer = model.features[2].conv1

    def rows() -> dict[float, tuple[float, ...]]:
        norm = layer[1]
        vectors = zip(norm.weight.tolist(), norm.bias.tolist(), norm.running_mean.tolist(), norm.running_var.tolist())
        return dict(zip(layer[0].weight.abs().double().sum((1, 2, 3)).mul(1e4).round().tolist(), vectors))

    before, order = rows(), layer[1].weight.tolist()
    rearrange(model, x, Block1xN(4, 0.5))
    assert rows() == before
    assert layer[1].weight.tolist() != order


def test_only_selected_weights_count() -> None:
    """A selection decides which layers are asked, each with its own pattern; spaces that touch none stay."""
    model, x = network("ResNet, basic")
    selection = select(model, "2:4", include=["features.3.conv2"], overrides={"features.4.conv1": "1x4@0.5"})
    result = rearrange(model, x, selection)
    assert moved(result) >= {"features.3.conv2.0.weight[1]", "features.4.conv1.0.weight[0]"}
    assert "features.2.conv2.0.weight[1]" not in moved(result)
    reasons = {name: space.reason for space in result.spaces for name in space.weights}
    assert reasons["features.2.conv2.0.weight[1]"] == "no pattern of a selected weight depends on their order"


def test_tied_weights() -> None:
    """One parameter under two names moves once."""
    model, x = network("tied language model")
    before = outputs(model, x, False)[0]
    assert "embed.weight[1]" in moved(rearrange(model, x, "2:4"))
    assert model.out.weight is model.embed.weight
    assert torch.allclose(outputs(model, x, False)[0], before, atol=1e-12)


def test_a_network_that_cannot_move() -> None:
    """Nothing changes, and the report says why for every dimension."""
    model = nn.Linear(8, 8)
    before = model.weight.detach().clone()
    result = rearrange(model, torch.randn(2, 8), "2:4")
    assert torch.equal(model.weight, before)
    assert [(s.weights, s.reason) for s in result.spaces] == [
        (("weight[0]",), "an output of the network"),
        (("weight[1]",), "an input of the network"),
    ]
    assert result.before == result.after


def test_a_rearrangement_that_would_change_the_function_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a space were wrong: the model is left bit for bit as it was, and the error says which and what to do."""
    found = flow.find_spaces

    def forgetful(trace: object) -> list[Space]:
        return [
            Space(tuple(site for site in space.sites if site.dims > 1), space.size, space.stays)
            for space in found(trace)
        ]

    monkeypatch.setattr(flow, "find_spaces", forgetful)
    model, x = network("ResNet, basic")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"the 8 channels of features.*Nothing has been changed.*ignore="):
        rearrange(model, x, "2:4")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search": "best"}, "search is one of sort, exchange; got 'best'"),
        ({"budget": -1}, "budget is a number of rounds"),
        ({"budget": 1.5}, "budget is a number of rounds"),
        ({"pattern": "2:16"}, "no weight was selected"),
        ({"pattern": "what"}, "what"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rearrange(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(2, 8), **arguments)


def test_models_that_are_refused() -> None:
    """A selection of another model, and weights that hold NaN, by name."""
    with pytest.raises(ValueError, match=r"no such parameters \(any more\): \['weight'\]"):
        rearrange(nn.Linear(8, 8), torch.randn(2, 8), select(nn.Linear(8, 8), "2:4"))
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^1\.weight: .*NaN"):
        rearrange(model, torch.randn(2, 8), "2:4")

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].bias = nn.Parameter(torch.zeros(1).expand(8))
    with pytest.raises(ValueError, match=r"0\.bias is an expanded tensor"):
        rearrange(model, torch.randn(2, 8), "2:4")
    model[0].bias.data = model[1].bias.data
    with pytest.raises(ValueError, match=r"0\.bias and 1\.bias share memory"):
        rearrange(model, torch.randn(2, 8), "2:4")


def test_a_parameter_that_no_run_uses() -> None:
    """Refused before anything is changed, if it might hold channels that would move."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.experts = nn.Linear(8, 16), nn.ModuleList(nn.Linear(16, 8) for _ in range(2))

        def forward(self, x: Tensor, expert: int = 0) -> Tensor:
            return self.experts[expert](self.a(x))

    model, x = Experts(), torch.randn(3, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"experts\.1\.weight.*used in no run.*a list of several"):
        rearrange(model, x, "2:4")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    expected = [model(x, expert) for expert in range(2)]
    assert "experts.1.weight[1]" in moved(rearrange(model, [(x, 0), (x, 1)], "2:4"))
    assert all(torch.allclose(model(x, expert), expected[expert], atol=1e-6) for expert in range(2))


def test_the_result_is_the_same_every_time() -> None:
    first, second = network("MobileNet-V2")[0], network("MobileNet-V2")[0]
    x: Tensor = NETWORKS["MobileNet-V2"].input()
    rearrange(first, x, "2:4")
    torch.randn(5)
    rearrange(second, x, "2:4")
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_sites_of_several_parts() -> None:
    """Where a channel sits in several positions of a dimension, they move together."""
    site = Site("w", 1, torch.tensor([[0, 1], [4, 5], [2, 3]]), 7, 2)
    assert site.index(torch.tensor([1, 2, 0])).tolist() == [4, 5, 0, 1, 2, 3, 6]
