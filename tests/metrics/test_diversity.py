"""The torchmetrics class: the functional's numbers, over updates, processes and copies."""

from __future__ import annotations

import pickle
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, distributed, multiprocessing
from torchmetrics import MetricCollection

from lightning_nm.metrics import MaskDiversity
from lightning_nm.metrics.functional import mask_diversity
from lightning_nm.patterns import NM

mpl.use("Agg")

SHAPES = {"fc1": (16, 32), "fc2": (8, 16)}
LAYERS = list(SHAPES)
PATTERNS = ["2:4", "4:8T", NM(1, 8), {"fc1": "2:4", "fc2": "2:4T"}]


def numbers(values: dict[str, Tensor]) -> dict[str, float]:
    return {key: value.item() for key, value in values.items()}


def near(values: dict[str, float]) -> object:
    """Equal to the 12 decimals of a nat that the class keeps."""
    return pytest.approx(values, rel=1e-13, abs=1e-12)


def updated(metric: MaskDiversity, patterns: list[object]) -> MaskDiversity:
    for pattern in patterns:
        metric.update(pattern, SHAPES)
    return metric


def mean(patterns: list[object], *, by_layer: bool = True) -> dict[str, float]:
    """The functional's numbers, averaged over patterns in plain Python."""
    each = [numbers(mask_diversity(pattern, SHAPES)) for pattern in patterns]
    return {key: sum(e[key] for e in each) / len(each) for key in each[0] if by_layer or "/" not in key}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_one_update_is_the_functional(pattern: object) -> None:
    """Class and functional agree."""
    metric = updated(MaskDiversity(layers=LAYERS), [pattern])
    assert numbers(metric.compute()) == near(numbers(mask_diversity(pattern, SHAPES)))


def test_one_weight_is_the_functional() -> None:
    """The same without names."""
    metric = MaskDiversity()
    metric.update("2:4T", torch.zeros(8, 8))
    assert numbers(metric.compute()) == near(numbers(mask_diversity("2:4T", (8, 8))))


@pytest.mark.parametrize("layers", [None, ["fc1", "fc2"], ["fc2", "fc1"]])
def test_many_updates_have_the_mean(layers: list[str] | None) -> None:
    """Of totals and layers, whatever the order of the names."""
    metric = updated(MaskDiversity(layers=layers), PATTERNS)
    assert numbers(metric.compute()) == near(mean(PATTERNS, by_layer=layers is not None))


def test_every_epoch_anew_changes_nothing() -> None:
    """A model measured a thousand times has the masks that it has."""
    metric = updated(MaskDiversity(), ["4:8T"] * 1000)
    assert numbers(metric.compute()) == near(mean(["4:8T"], by_layer=False))


def test_the_papers_formula() -> None:
    """For tiles that cannot be counted."""
    metric = MaskDiversity(exact=False)
    metric.update("16:32T", (64, 32))
    assert numbers(metric.compute()) == near(numbers(mask_diversity("16:32T", (64, 32), exact=False)))


def test_forward_gives_the_step_and_keeps_the_mean() -> None:
    """As Lightning's self.log uses it."""
    metric = MaskDiversity()
    steps = [numbers(metric(pattern, SHAPES)) for pattern in PATTERNS]
    assert steps == [near(mean([pattern], by_layer=False)) for pattern in PATTERNS]
    assert numbers(metric.compute()) == near(mean(PATTERNS, by_layer=False))


def test_reset_forgets() -> None:
    """A new epoch starts from nothing."""
    metric = updated(MaskDiversity(), PATTERNS)
    metric.reset()
    assert numbers(updated(metric, PATTERNS[1:2]).compute()) == near(mean(PATTERNS[1:2], by_layer=False))


def test_pickled_between_updates() -> None:
    """What was counted travels along."""
    metric = pickle.loads(pickle.dumps(updated(MaskDiversity(layers=LAYERS), PATTERNS[:1])))
    assert numbers(updated(metric, PATTERNS[1:]).compute()) == near(mean(PATTERNS))


def test_half_precision_does_not_reach_the_counts() -> None:
    """A module cast to fp16 keeps its numbers."""
    metric = updated(MaskDiversity().half(), ["2:4"])
    assert numbers(metric.compute()) == near(mean(["2:4"], by_layer=False))


def test_the_states_fit_every_device() -> None:
    """Some have no float64."""
    assert {state.dtype for state in (MaskDiversity().counts, MaskDiversity().updates)} == {torch.int64}


def test_large_models() -> None:
    """A trillion weights, many times over."""
    metric = MaskDiversity()
    for _ in range(100):
        metric.update("4:8", (2**20, 2**20))
    assert numbers(metric.compute()) == pytest.approx(numbers(mask_diversity("4:8", (2**20, 2**20))), rel=1e-15)


def test_in_a_collection() -> None:
    """Names get the collection's prefix."""
    collection = MetricCollection({"diversity": MaskDiversity()}, prefix="train/")
    collection.update("2:4", SHAPES)
    assert {"train/log", "train/log10", "train/bits_per_weight"} <= set(collection.compute())


def test_plot_of_now() -> None:
    """Bits per weight, of every layer."""
    figure, axes = updated(MaskDiversity(layers=LAYERS), PATTERNS).plot()
    assert isinstance(figure, Figure)
    drawn = {"bits_per_weight", "fc1/bits_per_weight", "fc2/bits_per_weight"}
    assert set(axes.get_legend_handles_labels()[1]) == drawn


def test_plot_over_time() -> None:
    """One line through all values."""
    metric = MaskDiversity()
    _, axes = metric.plot([metric(pattern, SHAPES) for pattern in PATTERNS])
    assert len(axes.get_lines()[0].get_xdata()) == len(PATTERNS)


def test_plot_into_axes_that_are_there() -> None:
    """The caller's axes are drawn into."""
    mine: Axes = Figure().subplots()
    _, axes = updated(MaskDiversity(), PATTERNS).plot(ax=mine)
    assert axes is mine


@pytest.mark.parametrize("layers", ["fc1", ["fc1", "fc1"]])
def test_layers_are_different_names(layers: object) -> None:
    """A string would be taken letter by letter."""
    with pytest.raises(ValueError, match="sequence of different names"):
        MaskDiversity(layers=layers)


@pytest.mark.parametrize(
    ("layers", "pattern", "weights", "said"),
    [
        (None, "2:4", (3, 6), r"2:4.*\(3, 6\)"),
        (["fc1"], "2:4", SHAPES, r"\['fc1'\] expected"),
        (["fc1"], "2:4", (4, 4), r"\['fc1'\] expected"),
        (None, "16:32T", (32, 32), "exact=False"),
    ],
    ids=["shape", "one more", "no names", "too many"],
)
def test_a_refused_update_counts_for_nothing(
    layers: list[str] | None, pattern: object, weights: object, said: str
) -> None:
    """The message says why, and the state is as it was."""
    metric = MaskDiversity(layers=layers)
    with pytest.raises(ValueError, match=said):
        metric.update(pattern, weights)
    assert int(metric.updates) == int(metric.counts.sum()) == 0


def rank_computes(rank: int, folder: str) -> None:
    """One process of two: both hold the same model, and rank 1 measures it more often."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = updated(MaskDiversity(layers=LAYERS), ["4:8T"] * (rank + 1))
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Both ranks report what one process would have: the world size inflates nothing."""
    multiprocessing.spawn(rank_computes, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert numbers(torch.load(tmp_path / f"{rank}.pt")) == near(mean(["4:8T"]))
