"""Figures of a topology: how it drifts, and what a mask looks like. Drawn without any window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HISTORY = ("step", "flip_rate", "sad_epoch_fraction", "sad_start_fraction")


def sad_figure(history: Sequence[Sequence[float]], title: str) -> Figure:
    """Flip rate, SAD since the epoch's start and SAD since the start, over optimizer steps.

    Args:
        history: rows of `HISTORY`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rate, distance = figure.subplots(1, 2)
    steps, flips, epoch, start = zip(*history) if history else ((), (), (), ())
    rate.plot(steps, flips, color="tab:red")
    rate.set(title="flips per step", xlabel="optimizer step", ylabel="fraction of entries")
    distance.plot(steps, start, color="tab:blue", label="since the start")
    distance.plot(steps, epoch, color="tab:orange", label="since the epoch's start")
    distance.set(title="SAD", xlabel="optimizer step", ylabel="fraction of entries")
    distance.legend()
    for axes in (rate, distance):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def mask_figure(mask: Tensor, title: str, side: int = 64) -> Figure:
    """The first ``side`` outputs and inputs of a mask (at the first kernel tap): dark = kept."""
    from matplotlib.figure import Figure

    corner = mask.flatten(2)[..., 0] if mask.dim() > 2 else mask
    corner = corner[:side, :side].cpu()
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(corner.numpy(), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(title=f"{title}\nfirst {corner.shape[0]} x {corner.shape[1]} of {list(mask.shape)}, dark = kept")
    axes.set(xlabel="input", ylabel="output")
    return figure
