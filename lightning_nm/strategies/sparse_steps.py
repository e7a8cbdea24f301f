"""What turns a Lightning strategy into one that trains on sparse products too."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

from lightning_nm.callbacks import loggers
from lightning_nm.callbacks.table import print_table
from lightning_nm.sparse import SparseTraining
from lightning_nm.sparse.acceleration import Row
from lightning_nm.strategies.sparse_evaluation import SparseEvaluation

if TYPE_CHECKING:
    from lightning_nm.callbacks import NMSparsityCallback


class SparseSteps(SparseEvaluation):
    """`SparseEvaluation`, and training if that is asked for. A mixin as that is.

    With ``sparse_training`` the weights that NMSparsityCallback keeps sparse are multiplied packed in the training step
    and in its backward pass, wherever that is faster: see `lightning_nm.sparse.SparseTraining`. Masks, hidden
    parts and checkpoints are made as without; the numbers are those of the dense products up to rounding.

    Args:
        sparse_training: without it training is that of Lightning's own strategy, bit for bit.
        backend, report: see `SparseEvaluation`; for training too.

    Raises:
        ValueError: when training starts, if ``sparse_training`` finds no NMSparsityCallback.
    """

    def __init__(self, *args: Any, sparse_training: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._asked = sparse_training
        self._training: SparseTraining | None = None

    @property
    def sparse_training(self) -> SparseTraining | None:
        """What multiplies in training; None outside a fit, and where it was not asked for."""
        return self._training

    def on_train_start(self) -> None:
        if self._asked:
            trainer: Trainer = self.lightning_module.trainer  # type: ignore[attr-defined]
            self._training = SparseTraining(_callback(trainer).sparsifier, backend=self._backend)  # type: ignore[arg-type]
        super().on_train_start()  # type: ignore[misc]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        with nullcontext() if self._training is None else self._training:
            return super().training_step(*args, **kwargs)  # type: ignore[misc]

    def on_train_end(self) -> None:
        training, self._training = self._training, None
        trainer: Trainer = self.lightning_module.trainer  # type: ignore[attr-defined]
        if training is not None and trainer.is_global_zero:
            rows = training.rows()
            if self._report:
                print_table("Sparse training: what ran where, and why", Row._fields, rows)
            loggers.log_table(trainer.loggers, "nm/training_backends", Row._fields, rows, trainer.global_step)
        super().on_train_end()  # type: ignore[misc]

    def on_exception(self, exception: BaseException) -> None:
        self._training = None
        super().on_exception(exception)

    def teardown(self) -> None:
        self._training = None
        super().teardown()


def _callback(trainer: Trainer) -> NMSparsityCallback:
    from lightning_nm.callbacks import NMSparsityCallback  # it may be what imports Lightning, which imports this

    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, NMSparsityCallback):
            return callback
    raise ValueError(
        "sparse_training multiplies by the weights that NMSparsityCallback trains: add it to the callbacks"
    )
