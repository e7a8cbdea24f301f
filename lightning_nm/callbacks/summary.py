"""What a run leaves in its loggers: the drift of each layer, the SAD curves, and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from lightning_nm.callbacks import loggers
from lightning_nm.callbacks.figures import mask_figure, sad_figure
from lightning_nm.callbacks.topology import Topology
from lightning_nm.training import SparseWeight, Sparsifier, shards

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_mask(weights: Sequence[SparseWeight], name: str | None) -> Figure:
    """The mask of one of the weights, the first sparse one if ``name`` is None.

    All processes of a sharded weight must call this.

    Raises:
        ValueError: nothing sparse of that name.
    """
    sparse = {weight.name: weight for weight in weights if weight.mask is not None}
    weight = sparse.get(name or next(iter(sparse), ""))
    if weight is None or weight.mask is None:
        raise ValueError(f"there is no mask of {name!r} to draw; there are {list(sparse)}")
    return mask_figure(shards.whole_mask(weight.mask, weight.param).unpack(), f"{weight.name} ({weight.pattern})")


def log_summary(trainer: Trainer, sparsifier: Sparsifier, topology: Topology, title: str, picture: str | None) -> None:
    """To every logger what it can show. All processes must call this; the first one logs."""
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    rows = topology.layer_rows(sparsifier)
    showing = loggers.with_figures(trainer.loggers)
    drawn = None
    # the chosen weight may be dense again by now
    chosen = [w for w in sparsifier.weights if w.mask is not None and picture in (None, w.name)]
    if chosen and loggers.can_draw() and (showing or shards.is_sharded(chosen[0].param)):
        drawn = plot_mask(chosen, picture)
    if not trainer.is_global_zero:
        return
    loggers.log_table(trainer.loggers, "nm/layers", topology.LAYER_COLUMNS, rows, step)
    if showing:
        loggers.log_figure(showing, "nm/sad", sad_figure(topology.history, title), step)
    if drawn is not None:
        loggers.log_figure(showing, "nm/mask", drawn, step)
