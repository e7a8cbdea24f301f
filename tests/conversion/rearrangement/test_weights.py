"""The weights that will be sparse: what their patterns retain, and which moves are kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, init_device_mesh

from lightning_nm import select
from lightning_nm.conversion.rearrangement.spaces import Moves, Site, Space
from lightning_nm.conversion.rearrangement.weights import Weights


def linear(rows: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def weights(model: nn.Module, pattern: str = "2:4") -> Weights:
    return Weights(model, select(model, pattern))


def moves(order: list[int], **dims: int) -> Moves:
    """These dimensions of the tensors of these names in a new order."""
    positions = torch.arange(len(order))[:, None]
    sites = tuple(Site(name, dim, positions, len(order), 2) for name, dim in dims.items())
    return Moves([(Space(sites, len(order)), torch.tensor(order))])


def values(found: Weights) -> dict[str, list[list[float]]]:
    return {name: weight.param.tolist() for name, weight in found.held.items()}


GOOD = [0, 4, 2, 3, 1, 5, 6, 7]
"""Puts one of the large inputs of `uneven` into the other group."""


def uneven() -> nn.Linear:
    """2:4 retains 7 + 2 of 10 + 2, in the order `GOOD` 7 + 4."""
    return linear([[4.0, -3.0, 3.0, 0.0, 0.0, 1.0, -1.0, 0.0]])


def test_the_share_is_that_of_the_magnitude() -> None:
    """Of what the pattern keeps, of either sign, over all."""
    found = weights(linear([[4.0, -3.0, 2.0, 1.0], [0.0, -5.0, 0.0, 5.0]]))
    assert found.share() == 17 / 20
    assert found.retained == {"weight": 17.0}


def test_the_share_of_some_weights() -> None:
    """Each with its own pattern, over the magnitude of those that were asked for."""
    model = nn.Sequential(linear([[4.0, 3.0, 2.0, 1.0]]), linear([[2.0, 1.0, 1.0, 16.0]]))
    found = Weights(model, select(model, "2:4", overrides={"1": "1:4"}))
    assert found.share(["0.weight"]) == 7 / 10
    assert found.share(["1.weight"]) == 16 / 20
    assert found.share() == 23 / 30


def test_groups_lie_along_the_dimension_that_is_summed_over() -> None:
    """Of a transposed convolution the first."""
    layer = nn.ConvTranspose2d(4, 3, 1, bias=False)
    layer.weight.data = torch.tensor([4.0, 3.0, 2.0, 1.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1).clone()
    assert weights(layer).share() == pytest.approx(7 / 10)


def test_weights_that_are_all_zero() -> None:
    """Nothing is lost."""
    assert weights(linear([[0.0] * 4])).share() == 1.0


def test_low_precision_is_counted_in_full() -> None:
    """Copies are float32, whatever the model's dtype; sums do not saturate."""
    found = weights(nn.Linear(64, 64, bias=False).bfloat16())
    held = found.held["weight"].param
    assert held.dtype == torch.float32
    magnitude = held.double().abs()
    kept = magnitude.view(64, 16, 4).topk(2).values.sum()
    assert found.retained["weight"] == pytest.approx(float(kept), rel=1e-12)
    assert found.share() == pytest.approx(float(kept / magnitude.sum()), rel=1e-12)


def test_a_move_that_retains_more_is_kept() -> None:
    """The copy is permuted, and the share is that of the new order."""
    found = weights(uneven())
    assert found.share() == 9 / 12
    assert found.move(["weight"], moves(GOOD, weight=1))
    assert found.held["weight"].param.tolist() == [[4.0, 0.0, 3.0, 0.0, -3.0, 1.0, -1.0, 0.0]]
    assert found.share() == 11 / 12


@pytest.mark.parametrize(
    ("rows", "order"),
    [
        ([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]], [0, 2, 4, 6, 1, 3, 5, 7]),
        ([[4.0, 3.0, 2.0, 1.0, 8.0, 7.0, 6.0, 5.0]], [0, 1, 2, 3, 4, 5, 6, 7]),
        ([[1.0, 1.0, 1e-11, 0.0, 0.0, 0.0, 0.0, 0.0]], [0, 1, 4, 3, 2, 5, 6, 7]),
    ],
    ids=["retains less", "retains the same", "retains more by less than sums are off"],
)
def test_a_move_that_gains_nothing_is_not_made(rows: list[list[float]], order: list[int]) -> None:
    """Neither values nor shares change."""
    found = weights(linear(rows))
    held, retained = values(found), dict(found.retained)
    assert not found.move(["weight"], moves(order, weight=1))
    assert values(found) == held
    assert found.retained == retained


def test_weights_are_judged_together() -> None:
    """One may lose where another gains more; those that were not asked do not count."""
    model = nn.Sequential(uneven(), linear([[0.5, 0.5, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0]]))
    both = moves(GOOD, **{"0.weight": 1, "1.weight": 1})
    assert not weights(model).move(["1.weight"], both)
    found = weights(model)
    assert found.move(["0.weight", "1.weight"], both)
    assert found.retained == {"0.weight": 11.0, "1.weight": 1.5}


def test_all_that_a_space_holds_moves_along() -> None:
    """Weights whose patterns do not ask for the order too; what is not sparse is not held."""
    model = nn.Sequential(linear([[float(i + j) for j in range(4)] for i in range(8)]), uneven())
    found = weights(model)
    assert found.move(["1.weight"], moves(GOOD, **{"0.weight": 0, "0.bias": 0, "1.weight": 1}))
    assert torch.equal(found.held["0.weight"].param, model[0].weight[GOOD])
    assert [*found.held] == ["0.weight", "1.weight"]


def test_moves_follow_one_another() -> None:
    """The second starts from where the first ended."""
    found = weights(linear([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]]))
    assert found.move(["weight"], moves([0, 1, 4, 3, 2, 5, 6, 7], weight=1))
    assert found.move(["weight"], moves([0, 1, 2, 5, 4, 3, 6, 7], weight=1))
    assert found.held["weight"].param.tolist() == [[4.0, 3.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0]]


def test_the_model_is_left_alone() -> None:
    """Copies move, not its parameters."""
    model = uneven()
    before, pointer = model.weight.detach().clone(), model.weight.data_ptr()
    assert weights(model).move(["weight"], moves(GOOD, weight=1))
    assert torch.equal(model.weight, before)
    assert model.weight.data_ptr() == pointer
    assert model.weight.requires_grad


def test_weights_are_held_by_the_names_of_the_model() -> None:
    """Those of spaces: with what torch.compile puts in front, and a tied parameter once, by its first name."""
    model = nn.Module()
    model.wrapped = nn.Module()
    model.wrapped._orig_mod = nn.Linear(8, 8)
    model.tied = model.wrapped._orig_mod
    assert [*weights(model).held] == ["wrapped._orig_mod.weight"]


def test_the_selection_of_another_model() -> None:
    """Every weight that is not the model's is named, and what to do."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    selection = select(model, "2:4")
    model[0], model[2] = nn.Linear(8, 8), nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"any more\): \['0\.weight', '2\.weight'\]; select in the model as it is"):
        Weights(model, selection)


@pytest.mark.parametrize("pattern", ["2:4", "2:4T", "2:4V4", "1x4@0.5", "unstructured@0.5"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite(pattern: str, value: float) -> None:
    """Under every pattern, with the name of the weight."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[1].weight[3, 2] = value
    with pytest.raises(ValueError, match=r"^1\.weight: .*(NaN|infinit)"):
        weights(model, pattern)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_sharded_weights() -> None:
    """They are refused by name: no process sees the order of all channels."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    mesh = init_device_mesh("cpu", (1,))
    model[1].weight = nn.Parameter(DTensor.from_local(model[1].weight.detach(), mesh, [Replicate()]))
    with pytest.raises(ValueError, match=r"^1\.weight is sharded over several processes"):
        weights(model)
