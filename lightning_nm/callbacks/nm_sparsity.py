"""The callback: N:M sparse training in any Lightning Trainer."""

# no `from __future__ import annotations` here: LightningCLI must find evaluated types, see PatternText

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_nm.callbacks import loggers
from lightning_nm.callbacks.averages import Averages
from lightning_nm.callbacks.compatibility import cautions, require_compatible, require_followed
from lightning_nm.callbacks.figures import sad_figure
from lightning_nm.callbacks.report import show_report
from lightning_nm.callbacks.summary import log_summary, plot_mask
from lightning_nm.callbacks.topology import Topology
from lightning_nm.patterns import PatternText
from lightning_nm.training import SRSTE, Method, Schedule, Selection, Sparsifier, named_method, select
from lightning_nm.training.checkpoint import require_joined

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
        pattern: ``"N:M"``, N kept of every M weights along the dimension that the GEMM sums over.
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
        log_every_n_steps: optimizer steps between two measurements of flips and SAD. These, and a look at
            the weights at each epoch's first batch, are the only waits for a GPU. None: the Trainer's
            ``log_every_n_steps``; 0: never, and then the two masks that SAD compares with (one bit per
            weight each) are not kept either.
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
        self.sparsifier: Sparsifier | None = None
        """The training core; None until a fit has been set up."""
        self.topology = Topology()
        self._averages = Averages()
        self._selecting = {
            "include": include,
            "ignore": ignore or [],
            "module_types": module_types,
            "overrides": {glob: p if p is None else PatternText(p) for glob, p in (overrides or {}).items()},
            "ignore_last_linear": ignore_last_linear,
        }
        self._selection: Selection | None = None
        self._restored: dict[str, Any] | None = None
        self._said_dense = False

    # -- following the model through start-up -----------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_compatible(trainer.strategy, trainer.callbacks)  # type: ignore[attr-defined]
        held = set() if self.sparsifier is None else {id(w.param) for w in self.sparsifier.weights}
        if held.isdisjoint(id(param) for param in pl_module.parameters()):
            # the first model, or another one than last time: nothing of the last one's holds for it
            self.sparsifier, self.topology = Sparsifier(None, self.method, self.schedule), Topology()
            self._said_dense = False
        self.topology.epoch = -1
        # ranks that were seeded apart hold different weights until they are wrapped: no masks before that
        if trainer.world_size == 1:
            self._adopt(pl_module, final=False)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # by now LightningModule.setup and configure_model have run, and most strategies have restored
        self._adopt(pl_module, final=False)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # sharded strategies restore weights just before this
        self._adopt(pl_module, final=False)
        assert self.sparsifier is not None
        self._averages.follow(trainer.callbacks, self.sparsifier)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._adopt(pl_module, final=True)
        assert self.sparsifier is not None
        assert self._selection is not None
        if self.picture is not None and self.picture not in (w.name for w in self.sparsifier.weights):
            raise ValueError(
                f"picture={self.picture!r} is not a selected weight; they are "
                + ", ".join(w.name for w in self.sparsifier.weights)
            )
        self._averages.follow(trainer.callbacks, self.sparsifier)  # type: ignore[attr-defined]
        for caution in cautions(trainer):
            rank_zero_warn(f"NMSparsityCallback: {caution}")
        show_report(trainer, self._selection, self.sparsifier, printed=self.report)

    def _adopt(self, pl_module: LightningModule, *, final: bool) -> None:
        """Select, and bring masks and hidden parts in line with the model as it is now.

        Lightning builds, restores, moves and wraps the model between `setup` and the first step, in an
        order that depends on the strategy; so this is done again at each stage (a few passes over the
        weights). ``final``: what is not there now will not come.
        """
        self._selection = select(pl_module, self.pattern, **self._selecting)  # type: ignore[arg-type]
        if final and not self._selection.waits:
            self._selection.require()
        assert self.sparsifier is not None
        if self._restored is not None and (final or self._selection.weights):
            self._join(self._restored, final=final)
        elif replaced := self.sparsifier.adopt(self._selection):
            rank_zero_info(
                f"NMSparsityCallback: {len(replaced)} weights were loaded after set-up; their values now count as "
                f"the dense weights ({', '.join(replaced[:4])}{', ...' if len(replaced) > 4 else ''})"
            )
            self.topology.forget(replaced)
        self.sparsifier.attach()

    def _join(self, restored: dict[str, Any], *, final: bool) -> None:
        """Bring a checkpoint's hidden parts and masks together with its weights."""
        assert self.sparsifier is not None
        assert self._selection is not None
        strangers = self.sparsifier.adopt(self._selection, restored["weights"])
        if strangers and not final:
            return  # the strategy restores the weights later: once more then
        require_joined(strangers)
        self._restored = None
        self.topology.load_state_dict(restored["topology"], self.sparsifier)
        self._averages.load_state_dict(restored["averages"])
        if restored["schedule"] != asdict(self.schedule):
            rank_zero_warn(
                f"NMSparsityCallback: the checkpoint was trained with the schedule {restored['schedule']}, this "
                f"run goes on with {asdict(self.schedule)}"
            )

    # -- while training ---------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # not in on_train_epoch_start: resumed from the last batch of an epoch, Lightning does not call it
        # for the next one, and the module's own, which may replace layers, comes after it
        assert self._selection is not None
        begins = self.topology.epoch != trainer.current_epoch
        if begins or self._selection.waits:
            self._adopt(pl_module, final=True)
        if begins:
            assert self.sparsifier is not None
            masks = self.sparsifier.masks() if self._log_every(trainer) else {}
            self.topology.meet(masks)
            self.topology.begin_epoch(trainer.current_epoch, masks)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # Lightning has unscaled the gradients and is about to clip them. An optimizer that unscales by itself
        # still holds scaled ones, and Lightning does not clip those
        unscaled = not getattr(optimizer, "_step_supports_amp_scaling", False)
        if self.decay_before_clipping and pl_module.automatic_optimization and unscaled:
            assert self.sparsifier is not None
            self.sparsifier.regularize(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.sparsifier is not None
        require_followed(self.sparsifier)
        steps = self.sparsifier.steps
        if self.schedule.over(steps) and not self._said_dense:
            self._said_dense = True
            rank_zero_warn(
                f"NMSparsityCallback: the schedule's dense_from={self.schedule.dense_from} is reached; from here on "
                "the weights are dense, and so are checkpoints"
            )
        every = self._log_every(trainer)
        if not every:
            return
        self.topology.meet(self.sparsifier.masks())
        # several steps may fall into one batch and pass the multiple
        if steps // every > self.topology.measured_at // every:
            values = {f"nm/{k}": v for k, v in self.topology.measure(self.sparsifier, layers=self.log_layers).items()}
            pl_module.log_dict(values, on_step=True, on_epoch=False, logger=False)
            # to the loggers at once: Lightning would drop what falls between its own logging steps
            loggers.log_numbers(trainer.loggers, values, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before any average is swapped in
        self._averages.settle()

    def _log_every(self, trainer: Trainer) -> int:
        if self.log_every_n_steps is not None:
            return self.log_every_n_steps
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.sparsifier is not None
        for weight in self.sparsifier.weights:
            weight.check_finite()
        if self._log_every(trainer):
            log_summary(trainer, self.sparsifier, self.topology, self._title, self.picture)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._averages.leave()
        if self.sparsifier is not None:
            self.sparsifier.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._averages.leave()
        if self.sparsifier is not None:
            self.sparsifier.detach()

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
        if self.sparsifier is None:
            return {}
        return {
            "weights": self.sparsifier.state_dict(),
            "topology": self.topology.state_dict(self.sparsifier),
            "averages": self._averages.state_dict(),
            "schedule": asdict(self.schedule),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # the model may not be built or restored yet: joined with it in `_adopt`
        self._restored = state_dict or None
