"""What cannot be combined with sparse training, and what the user should know."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lightning_nm.kernels import compiled_cpu
from lightning_nm.training import Sparsifier

_STRATEGIES = {
    "FSDPStrategy": (
        "FSDP1 (FullyShardedDataParallel) flattens parameters into one vector, which cuts N:M groups anywhere. "
        "Use FSDP2: strategy=ModelParallelStrategy()"
    ),
    "DeepSpeedStrategy": (
        "DeepSpeed steps flattened copies of the weights, which no mask reaches. "
        "Use DDP, or FSDP2: strategy=ModelParallelStrategy()"
    ),
}


def require_compatible(strategy: Strategy, callbacks: Iterable[Callback]) -> None:
    """Raise ValueError for a strategy, or a callback under it, that leaves no sparse weights to keep."""
    for name in (kind.__name__ for kind in type(strategy).__mro__):
        if name in _STRATEGIES:
            raise ValueError(f"NMSparsityCallback does not work under {name}: {_STRATEGIES[name]}")
    averaging = [type(c).__name__ for c in callbacks if isinstance(c, (WeightAveraging, StochasticWeightAveraging))]
    if averaging and isinstance(strategy, ModelParallelStrategy):
        raise ValueError(f"{averaging[0]} averages whole models; under ModelParallelStrategy they are sharded. Use DDP")


def require_followed(sparsifier: Sparsifier) -> None:
    """Raise RuntimeError if weights move, but by no optimizer step that PyTorch announces."""
    moved = [weight.name for weight in sparsifier.weights if weight.touched()]
    if moved and not sparsifier.steps:
        raise RuntimeError(
            f"the weights {moved} were updated, but by no step of a torch.optim.Optimizer: masks and hidden parts "
            "cannot follow. Update them by an optimizer derived from torch.optim.Optimizer"
        )


def cautions(trainer: Trainer) -> list[str]:
    """What costs speed or state in silence."""
    said = []
    if compiled_cpu() is None:
        said.append("numba does not import, so masks on a CPU are found by plain torch, several times slower")
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        # of what the processes of ddp_spawn and ddp_fork hold, Lightning brings back the weights only
        said.append(
            "masks and hidden parts stay in the processes that the strategy starts; to train on later, resume from a "
            "checkpoint that was saved during this fit"
        )
    return said
