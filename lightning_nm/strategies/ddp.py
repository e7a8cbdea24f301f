"""``strategy="nm_sparse_ddp"`` and its variants."""

from __future__ import annotations

from lightning.fabric.strategies import _StrategyRegistry  # type: ignore[attr-defined]
from lightning.pytorch.strategies import DDPStrategy

from lightning_nm.strategies.sparse_steps import SparseSteps


class NMSparseDDPStrategy(SparseSteps, DDPStrategy):
    """DDP; sparse kernels in validation, test and predict, and in training if asked for.

    Each process finds the fastest for itself.

    Args:
        backend, report: see `SparseEvaluation`.
        sparse_training: see `SparseSteps`.
        others: those of Lightning's DDPStrategy.
    """

    @classmethod
    def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
        """Under ``nm_sparse_`` and each name that Lightning has for DDP: spawn, fork, notebook, ..."""
        lightnings = _StrategyRegistry()
        DDPStrategy.register_strategies(lightnings)
        for name, entry in lightnings.items():
            strategy_registry.register(
                f"nm_sparse_{name}", cls, description=f"{entry['description']}, sparse kernels", **entry["init_params"]
            )
