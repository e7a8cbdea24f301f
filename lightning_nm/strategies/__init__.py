"""Lightning strategies that validate, test and predict on sparse kernels. Importing this room registers them."""

from lightning.pytorch.strategies import StrategyRegistry

from lightning_nm.strategies.ddp import NMSparseDDPStrategy
from lightning_nm.strategies.single_device import NMSparseStrategy
from lightning_nm.strategies.sparse_evaluation import SparseEvaluation

__all__ = ["NMSparseDDPStrategy", "NMSparseStrategy", "SparseEvaluation"]

if NMSparseStrategy.strategy_name not in StrategyRegistry:  # it refuses a name that it has, as after a reload
    for _strategy in (NMSparseStrategy, NMSparseDDPStrategy):
        _strategy.register_strategies(StrategyRegistry)
