"""What turns a Lightning strategy into one that validates, tests and predicts on sparse kernels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_nm.callbacks import loggers
from lightning_nm.callbacks.table import print_table
from lightning_nm.sparse import Acceleration
from lightning_nm.sparse.acceleration import Row
from lightning_nm.sparse.decision import AUTO


class SparseEvaluation:
    """Mixin for any Lightning strategy whose processes hold whole weights:

        class MyStrategy(SparseEvaluation, lightning.pytorch.strategies.DDPStrategy): ...

    (`SparseSteps` instead trains on sparse products too, if asked.)

    Within ``validation_step``, ``test_step`` and ``predict_step`` the model's sparse weights are multiplied by whatever
    `lightning_nm.sparse.accelerate` finds fastest. Around them the model holds its own parameters, the very same
    objects, so that checkpoints, averages and callbacks see nothing else. Weights are looked at, and packed, at the
    first step of each evaluation, when averages have been swapped in.

    Args:
        backend: see `lightning_nm.sparse.accelerate`.
        report: print, once for each of fit, validate, test and predict, what ran where and why. Loggers that show
            tables get it in any case, as ``nm/backends``.
    """

    def __init__(self, *args: Any, backend: str = AUTO, report: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        Acceleration.check(backend)
        self._backend, self._report = backend, report
        self._acceleration: Acceleration | None = None
        self._warned = False
        self._reported: dict[str, list[tuple[str, str]]] = {}

    @property
    def acceleration(self) -> Acceleration | None:
        """The model as this evaluation runs it; None between evaluations and before the first step."""
        return self._acceleration

    @contextmanager
    def _on_sparse_kernels(self) -> Iterator[None]:
        if self._acceleration is None:
            model = self.lightning_module  # type: ignore[attr-defined]
            assert model is not None
            self._acceleration = Acceleration(model, backend=self._backend)
            self._acceleration.pack()
            if not self._acceleration.sparse:
                self._warn(self._acceleration.skipped)
        with self._acceleration.active():
            yield

    def _warn(self, skipped: Sequence[Row]) -> None:
        """Once, and not of a model that training has yet to make sparse."""
        if self._warned or self.lightning_module.trainer.sanity_checking:  # type: ignore[attr-defined]
            return
        self._warned = True
        why = f" ({skipped[0].name}: {skipped[0].reason})" if skipped else ""
        rank_zero_warn(
            f"nm_sparse: no weight of the model is sparse and can be packed{why}, so all of it runs dense. Train it "
            "with NMSparsityCallback, or convert it (lightning-nm convert)"
        )

    def _finish(self) -> None:
        """Forget what was packed, and say what ran where."""
        acceleration, self._acceleration = self._acceleration, None
        trainer = self.lightning_module.trainer  # type: ignore[attr-defined]
        if acceleration is None or not acceleration.sparse or trainer.sanity_checking or not trainer.is_global_zero:
            return
        rows = acceleration.rows()
        backends = [(row.name, row.backend) for row in rows]
        function = str(trainer.state.fn)
        if function not in self._reported and self._report:
            print_table("Sparse evaluation: what ran where, and why", Row._fields, rows)
        if self._reported.get(function) != backends:
            loggers.log_table(trainer.loggers, "nm/backends", Row._fields, rows, trainer.global_step)
        self._reported[function] = backends

    # -- Lightning's calls ------------------------------------------------------------------------

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._on_sparse_kernels():
            return super().validation_step(*args, **kwargs)  # type: ignore[misc]

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._on_sparse_kernels():
            return super().test_step(*args, **kwargs)  # type: ignore[misc]

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._on_sparse_kernels():
            return super().predict_step(*args, **kwargs)  # type: ignore[misc]

    def on_validation_end(self) -> None:
        self._finish()
        super().on_validation_end()  # type: ignore[misc]

    def on_test_end(self) -> None:
        self._finish()
        super().on_test_end()  # type: ignore[misc]

    def on_predict_end(self) -> None:
        self._finish()
        super().on_predict_end()  # type: ignore[misc]

    def on_exception(self, exception: BaseException) -> None:
        self._acceleration = None
        super().on_exception(exception)  # type: ignore[misc]

    def teardown(self) -> None:
        self._acceleration = None
        super().teardown()  # type: ignore[misc]
