"""Lightning strategies that validate, test, predict and, if asked, train on sparse kernels.

Importing this room registers them.
"""

from lightning.pytorch.strategies import StrategyRegistry

from lightning_nm.strategies.ddp import NMSparseDDPStrategy
from lightning_nm.strategies.single_device import NMSparseStrategy
from lightning_nm.strategies.sparse_evaluation import SparseEvaluation
from lightning_nm.strategies.sparse_steps import SparseSteps

__all__ = ["NMSparseDDPStrategy", "NMSparseStrategy", "SparseEvaluation", "SparseSteps"]

if NMSparseStrategy.strategy_name not in StrategyRegistry:  # it refuses a name that it has, as after a reload
    for _strategy in (NMSparseStrategy, NMSparseDDPStrategy):
        _strategy.register_strategies(StrategyRegistry)
