"""The torchmetrics class: the functional's numbers, over updates, processes and copies."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, distributed, multiprocessing
from torchmetrics import MetricCollection

from lightning_nm.metrics import SparseArchitectureDivergence
from lightning_nm.metrics.functional import sparse_architecture_divergence
from lightning_nm.patterns import PackedMask
from tests.oracles import hamming_by_hand, nm_mask_by_hand

mpl.use("Agg")

Masks = dict[str, Tensor]


def masks(seed: int) -> Masks:
    """2:4 and 1:4 masks of two layers, 40 and 12 entries."""
    random = torch.Generator().manual_seed(seed)
    return {
        "fc1": nm_mask_by_hand(torch.rand(5, 8, generator=random), 2, 4),
        "fc2": nm_mask_by_hand(torch.rand(3, 4, generator=random), 1, 4),
    }


MOMENTS = [masks(seed) for seed in range(4)]
PAIRS = list(pairwise(MOMENTS))


def by_hand(pairs: list[tuple[Masks, Masks]], layers: list[str]) -> dict[str, float]:
    """The three numbers of some layers over some updates, in plain Python."""
    count = sum(hamming_by_hand(before[name], after[name]) for before, after in pairs for name in layers)
    numel = sum({"fc1": 40, "fc2": 12}[name] for name in layers) * len(pairs)
    largest = sum({"fc1": 40 * 2 * 2 / 4, "fc2": 12 * 2 * 1 / 4}[name] for name in layers) * len(pairs)
    return {"count": count / len(pairs), "fraction": count / numel, "fraction_of_max": count / largest}


def updated(metric: SparseArchitectureDivergence, pairs: list[tuple[Masks, Masks]]) -> SparseArchitectureDivergence:
    for before, after in pairs:
        metric.update(before, after)
    return metric


def totals(pair: tuple[Masks, Masks]) -> dict[str, Tensor]:
    """What the functional says of one pair, all layers together."""
    return {k: v for k, v in sparse_architecture_divergence(*pair).items() if "/" not in k}


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    return {key: value.item() for key, value in values.items()}


def test_one_update_is_the_functional() -> None:
    """Class and functional agree."""
    before, after = MOMENTS[0]["fc1"], MOMENTS[1]["fc1"]
    metric = SparseArchitectureDivergence()
    metric.update(before, after)
    assert metric.compute() == sparse_architecture_divergence(before, after)


def test_one_update_by_layers_is_the_functional() -> None:
    """The same with a mask per layer."""
    metric = updated(SparseArchitectureDivergence(layers=["fc1", "fc2"]), PAIRS[:1])
    assert metric.compute() == sparse_architecture_divergence(*PAIRS[0])


def test_many_updates() -> None:
    """The count is a mean over updates, the fractions are ratios of sums."""
    metric = updated(SparseArchitectureDivergence(), PAIRS)
    assert numbers(metric.compute()) == pytest.approx(by_hand(PAIRS, ["fc1", "fc2"]), rel=1e-12)


@pytest.mark.parametrize("layers", [["fc1", "fc2"], ["fc2", "fc1"]])
def test_every_layer_is_reported(layers: list[str]) -> None:
    """As <layer>/<key>, beside the totals, whatever the order of the names."""
    values = numbers(updated(SparseArchitectureDivergence(layers=layers), PAIRS).compute())
    expected = by_hand(PAIRS, layers)
    for name in layers:
        expected |= {f"{name}/{key}": value for key, value in by_hand(PAIRS, [name]).items()}
    assert values == pytest.approx(expected, rel=1e-12)


def test_packed_masks_give_the_same() -> None:
    """Bool or packed."""
    packed = [tuple({k: PackedMask.pack(v) for k, v in moment.items()} for moment in pair) for pair in PAIRS]
    metric, of_packed = SparseArchitectureDivergence(), SparseArchitectureDivergence()
    assert updated(of_packed, packed).compute() == updated(metric, PAIRS).compute()


def test_forward_gives_the_step_and_keeps_the_sum() -> None:
    """As Lightning's self.log uses it."""
    metric = SparseArchitectureDivergence()
    steps = [metric(*pair) for pair in PAIRS]
    assert steps == [updated(SparseArchitectureDivergence(), [pair]).compute() for pair in PAIRS]
    assert metric.compute() == updated(SparseArchitectureDivergence(), PAIRS).compute()


def test_reset_forgets() -> None:
    """A new epoch starts from nothing."""
    metric = updated(SparseArchitectureDivergence(), PAIRS)
    metric.reset()
    assert updated(metric, PAIRS[1:2]).compute() == totals(PAIRS[1])


def test_a_clone_goes_its_own_way() -> None:
    """It starts with what was counted; what comes then stays in it."""
    metric = updated(SparseArchitectureDivergence(), PAIRS[:1])
    assert updated(metric.clone(), PAIRS[1:]).compute() == updated(SparseArchitectureDivergence(), PAIRS).compute()
    assert metric.compute() == totals(PAIRS[0])


def test_pickled_between_updates() -> None:
    """What was counted travels along."""
    metric = pickle.loads(pickle.dumps(updated(SparseArchitectureDivergence(layers=["fc1", "fc2"]), PAIRS[:1])))
    expected = updated(SparseArchitectureDivergence(layers=["fc1", "fc2"]), PAIRS).compute()
    assert updated(metric, PAIRS[1:]).compute() == expected


def test_half_precision_does_not_reach_the_counts() -> None:
    """A module cast to fp16 keeps exact counts; 2049 is no fp16 number."""
    metric = SparseArchitectureDivergence().half()
    before = torch.zeros(2049, dtype=torch.bool)
    metric.update(before, ~before)
    assert metric.compute()["count"].item() == 2049


def test_counts_beyond_float32_are_exact() -> None:
    """Sums of many updates of a large model: 2^24 + 1 is no float32."""
    metric = SparseArchitectureDivergence()
    mask = torch.zeros(2**24 + 1, dtype=torch.bool)
    metric.update(mask, ~mask)
    assert metric.compute()["count"].item() == 2**24 + 1


def test_in_a_collection() -> None:
    """Names get the collection's prefix."""
    collection = MetricCollection({"sad": SparseArchitectureDivergence()}, prefix="train/")
    collection.update(*PAIRS[0])
    assert {"train/count", "train/fraction", "train/fraction_of_max"} <= set(collection.compute())


@pytest.mark.parametrize("layers", [None, ["fc1", "fc2"]])
def test_plot_of_now(layers: list[str] | None) -> None:
    """A figure with the two fractions."""
    figure, axes = updated(SparseArchitectureDivergence(layers=layers), PAIRS).plot()
    assert isinstance(figure, Figure)
    assert {"fraction", "fraction_of_max"} == set(axes.get_legend_handles_labels()[1])


def test_plot_over_time() -> None:
    """One line for each fraction through all values."""
    metric = SparseArchitectureDivergence()
    steps = [metric(*pair) for pair in PAIRS]
    figure, axes = metric.plot(steps)
    assert isinstance(figure, Figure)
    assert all(len(line.get_xdata()) == len(PAIRS) for line in axes.get_lines()[:2])


def test_plot_into_axes_that_are_there() -> None:
    """The caller's axes are drawn into."""
    mine: Axes = Figure().subplots()
    _, axes = updated(SparseArchitectureDivergence(), PAIRS).plot(ax=mine)
    assert axes is mine


@pytest.mark.parametrize(
    ("layers", "before", "after", "said"),
    [
        (None, torch.ones(4), torch.ones(4), "bool tensor"),
        (None, MOMENTS[0]["fc1"], MOMENTS[0]["fc2"], r"\(5, 8\) and \(3, 4\)"),
        (["fc1"], MOMENTS[0], MOMENTS[1], r"\['fc1'\] expected"),
        (["fc1", "fc2", "fc3"], MOMENTS[0], MOMENTS[1], r"\['fc1', 'fc2', 'fc3'\] expected"),
        (["fc1"], MOMENTS[0]["fc1"], MOMENTS[1]["fc1"], r"\['fc1'\] expected"),
    ],
    ids=["float", "shape", "one more", "one missing", "no names"],
)
def test_what_cannot_be_compared(layers: list[str] | None, before: object, after: object, said: str) -> None:
    """The message says why."""
    with pytest.raises(ValueError, match=said):
        SparseArchitectureDivergence(layers=layers).update(before, after)


def test_a_refused_update_counts_for_nothing() -> None:
    """The state is as it was."""
    metric = updated(SparseArchitectureDivergence(), PAIRS[:1])
    with pytest.raises(ValueError):
        metric.update(torch.ones(4), torch.ones(4))
    assert metric.compute() == totals(PAIRS[0])


def rank_computes(rank: int, folder: str) -> None:
    """One process of two: ranks see different masks, and not equally often."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = SparseArchitectureDivergence(layers=["fc1", "fc2"])
    updated(metric, PAIRS[:1] if rank == 0 else PAIRS[1:])
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Both ranks report what one process would have: the world size inflates nothing."""
    multiprocessing.spawn(rank_computes, (str(tmp_path),), nprocs=2)
    expected = updated(SparseArchitectureDivergence(layers=["fc1", "fc2"]), PAIRS).compute()
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [expected, expected]
