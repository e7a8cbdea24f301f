"""The callback: N:M sparse training in any Lightning Trainer."""

# no `from __future__ import annotations` here: LightningCLI must find evaluated types, see PatternText

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_nm.callbacks import loggers
from lightning_nm.callbacks.compatibility import cautions, require_compatible, require_followed, require_unpruned
from lightning_nm.callbacks.figures import sad_figure
from lightning_nm.callbacks.report import show_report
from lightning_nm.callbacks.summary import log_summary, plot_mask
from lightning_nm.callbacks.topology import Topology
from lightning_nm.callbacks.trained_model import TrainedModel
from lightning_nm.callbacks.whole_files import write_whole_files
from lightning_nm.patterns import PatternText
from lightning_nm.training import SRSTE, Method, Schedule, Sparsifier, named_method, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_nm.training.selection import PatternLike
else:
    PatternLike = PatternText  # what LightningCLI sees

DEFAULT_DECAY = 2e-4


class NMSparsityCallback(Callback):
    """Train a network whose weights are exactly N:M sparse, from the first step to the checkpoint.

    Outside the optimizer's update the model always holds its sparse weights: forward passes,
    validation, checkpoints and exports see nothing else, under the dense model's own names. What the
    masks remove is kept in this callback (and in its checkpoint state), and returns to the weights
    only while the optimizer steps.

    Args:
        pattern: ``"N:M"``, N kept of every M weights along the dimension that the GEMM sums over;
            ``"N:MT"`` for transposable masks, by which the transposed weight is N:M too.
        method: ``"sr_ste"`` (Zhou et al., ICLR 2021), ``"ste"``, ``"frozen"`` (one-shot, then fixed:
            ASP), ``"s_ste"`` (arXiv 2409.09099), or a `lightning_nm.training.Method`.
        decay: lambda of ``"sr_ste"``. With a `Method` of your own give it there.
        schedule: start, refresh interval, decay ramp, freeze and dense tail, in optimizer steps.
        decay_before_clipping: add the decay before Lightning clips the gradients, so that it is clipped
            with them, as in the published code. By default it is added to what clipping left, and
            lambda is exact. (In manual optimization you clip yourself; call
            ``sparsifier.regularize(optimizer)`` before it.)
        include: globs over parameter and module names; only matches become sparse. None: all.
        ignore: globs; matches stay dense.
        module_types: names of layer classes; only their weights become sparse. None: all.
        overrides: glob -> pattern for the weights it matches, or None to leave them dense. The last
            match decides and goes before the other rules.
        ignore_last_linear: leave the model's last Linear dense, as the SR-STE paper does.
        log_every_n_steps: optimizer steps between two measurements of flips and SAD, beside the one at each
            epoch's end. These, and a look at the weights at each epoch's first batch, are the only waits for a
            GPU. None: the Trainer's ``log_every_n_steps``; 0: never, and then the two masks that SAD compares
            with (one bit per weight each) are not kept either.
        log_layers: log the numbers of every layer too.
        picture: name of the weight whose mask is drawn; None: the first selected one.
        report: print the table of selected and skipped weights when training starts.

    Logged as ``nm/...``: ``flips`` and ``flip_rate`` (per optimizer step), ``sad_epoch`` and
    ``sad_start`` (counts; also ``_fraction`` and ``_fraction_of_max``), ``sparsity``; at the end a
    table by layer, the SAD curves and a mask picture where the logger can show them.

    Raises:
        ValueError: at once for a pattern, method or schedule that makes no sense; when training starts
            if nothing was selected, or a glob matches nothing.
    """

    def __init__(
        self,
        pattern: PatternLike = "2:4",
        *,
        method: Method | Literal["sr_ste", "ste", "frozen", "s_ste"] = "sr_ste",
        decay: float = DEFAULT_DECAY,
        schedule: Schedule = Schedule(),
        decay_before_clipping: bool = False,
        include: list[str] | None = None,
        ignore: list[str] | None = None,
        module_types: list[str] | None = None,
        overrides: dict[str, PatternLike | None] | None = None,
        ignore_last_linear: bool = False,
        log_every_n_steps: int | None = None,
        log_layers: bool = False,
        picture: str | None = None,
        report: bool = True,
    ) -> None:
        if method != "sr_ste" and decay != DEFAULT_DECAY:
            raise ValueError(f"decay={decay} applies to method='sr_ste' only; a Method object takes its own")
        self.pattern = PatternText(pattern)
        if method == "sr_ste":
            self.method: Method = SRSTE(decay)
        else:
            self.method = method if isinstance(method, Method) else named_method(method)
        self.schedule = schedule
        self.decay_before_clipping = decay_before_clipping
        self.log_every_n_steps = log_every_n_steps
        self.log_layers = log_layers
        self.picture = picture
        self.report = report
        rules: dict[str, Any] = {
            "include": include,
            "ignore": ignore or [],
            "module_types": module_types,
            "overrides": {glob: p if p is None else PatternText(p) for glob, p in (overrides or {}).items()},
            "ignore_last_linear": ignore_last_linear,
        }
        self._model = TrainedModel(partial(select, pattern=self.pattern, **rules), self.method, schedule)

    @property
    def sparsifier(self) -> Sparsifier | None:
        """The training core; None until a fit has been set up."""
        return self._model.sparsifier

    @property
    def topology(self) -> Topology:
        """How the masks have drifted."""
        return self._model.topology

    # -- start-up ---------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_compatible(trainer, self)
        # first, for the learning-rate finder trains in its on_fit_start: what `setup` cannot see must be sparse then
        trainer.callbacks = [self, *(c for c in trainer.callbacks if c is not self)]  # type: ignore[attr-defined]
        write_whole_files(trainer.strategy)
        self._model.meet(pl_module)
        self.topology.epoch = -1
        # ranks that were seeded apart hold different weights until they are wrapped: no masks before that
        if trainer.world_size == 1:
            self._model.follow(pl_module, final=False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # by now LightningModule.setup and configure_model have run, and most strategies have restored
        self._model.follow(pl_module, final=False)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # sharded strategies restore weights just before this
        self._model.follow(pl_module, final=False)
        self._model.averages.follow(trainer.callbacks, self._model.core)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._model.follow(pl_module, final=True)
        core = self._model.core
        names = [weight.name for weight in core.weights]
        if self.picture is not None and self.picture not in names:
            raise ValueError(f"picture={self.picture!r} is not a selected weight; they are {', '.join(names)}")
        self._model.averages.follow(trainer.callbacks, core)  # type: ignore[attr-defined]
        require_unpruned(trainer, core)
        for caution in cautions(trainer):
            rank_zero_warn(f"NMSparsityCallback: {caution}")
        show_report(trainer, self._model.selection, core, printed=self.report)

    # -- while training ---------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # not in on_train_epoch_start: resumed from the last batch of an epoch, Lightning does not call it
        # for the next one, and the module's own, which may replace layers, comes after it
        begins = self.topology.epoch != trainer.current_epoch
        if begins or self._model.has_more(pl_module):
            self._model.follow(pl_module, final=True)
        if begins:
            masks = self._model.core.masks() if self._log_every(trainer) else {}
            self.topology.meet(masks)
            self.topology.begin_epoch(trainer.current_epoch, masks)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Lightning has unscaled the gradients and is about to clip them. An optimizer that unscales by itself
        # still holds scaled ones, and Lightning does not clip those
        unscaled = not getattr(optimizer, "_step_supports_amp_scaling", False)
        if self.decay_before_clipping and pl_module.automatic_optimization and unscaled:
            self._model.core.regularize(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        core = self._model.core
        require_followed(core)
        if self.schedule.over(core.steps) and not self._model.said_dense:
            self._model.said_dense = True
            rank_zero_warn(
                f"NMSparsityCallback: the schedule's dense_from={self.schedule.dense_from} is reached; from here on "
                "the weights are dense, and so are checkpoints"
            )
        every = self._log_every(trainer)
        if not every:
            return
        self.topology.meet(core.masks())
        # several steps may fall into one batch and pass the multiple; an epoch ends with a measurement in any case
        last = self.topology.measured_at
        if core.steps // every > last // every or (trainer.is_last_batch and core.steps > last):
            values = {f"nm/{k}": v for k, v in self.topology.measure(core, layers=self.log_layers).items()}
            pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False)
            # to the loggers at once: Lightning would drop what falls between its own logging steps
            loggers.log_numbers(trainer.loggers, values, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before any average is swapped in
        self._model.averages.settle()

    def _log_every(self, trainer: Trainer) -> int:
        if self.log_every_n_steps is not None:
            return self.log_every_n_steps
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        core = self._model.core
        for weight in core.weights:
            weight.check_finite()
        if self._log_every(trainer):
            log_summary(trainer, core, self.topology, self._title, self.picture)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._model.leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._model.finish(pl_module)

    # -- what it shows ----------------------------------------------------------------------------

    @property
    def _title(self) -> str:
        return f"{self.pattern} {type(self.method).__name__}"

    def plot_sad(self) -> "Figure":
        """Flip rate and SAD over the optimizer steps measured so far (needs matplotlib)."""
        return sad_figure(self.topology.history, self._title)

    def plot_mask(self, name: str | None = None) -> "Figure":
        """The mask of a selected weight as it is now (needs matplotlib).

        Where the weight is sharded, all processes must call this.

        Raises:
            ValueError: nothing sparse of that name.
        """
        weights = [] if self.sparsifier is None else self.sparsifier.weights
        return plot_mask(weights, name or self.picture)

    # -- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return self._model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._model.load_state_dict(state_dict)
