"""What cannot be combined with sparse training, and what the user should know."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lightning_nm.kernels import compiled_cpu
from lightning_nm.training import Sparsifier

REFUSED_STRATEGIES = {
    "FSDPStrategy": (
        "FSDP1 (FullyShardedDataParallel) flattens parameters into one vector, which cuts N:M groups anywhere. "
        "Use FSDP2: strategy=ModelParallelStrategy()"
    ),
    "DeepSpeedStrategy": (
        "DeepSpeed steps flattened copies of the weights, which no mask reaches. "
        "Use DDP, or FSDP2: strategy=ModelParallelStrategy()"
    ),
}


def require_strategy(strategy: object) -> None:
    """Raise ValueError under a strategy that does not let parameters be seen, or stepped, as they are."""
    for kind in type(strategy).__mro__:
        if kind.__name__ in REFUSED_STRATEGIES:
            raise ValueError(
                f"NMSparsityCallback does not work under {kind.__name__}: {REFUSED_STRATEGIES[kind.__name__]}"
            )


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
