"""What cannot be combined with sparse training, and what the user should know."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer

from lightning_nm.callbacks.kinds import is_kind
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


def require_compatible(trainer: Trainer, mine: Callback) -> None:
    """Raise ValueError for a strategy, or another callback, that leaves no sparse weights to keep."""
    for name, why in _STRATEGIES.items():
        if is_kind(trainer.strategy, name):
            raise ValueError(f"NMSparsityCallback does not work under {name}: {why}")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback is not mine and type(callback) is type(mine):
            raise ValueError(
                "there are two NMSparsityCallbacks, whose states would overwrite each other's; give one of them all "
                "patterns: overrides={glob: pattern}"
            )
        averages = is_kind(callback, "WeightAveraging", "StochasticWeightAveraging")
        if averages and is_kind(trainer.strategy, "ModelParallelStrategy"):
            raise ValueError(
                f"{type(callback).__name__} averages whole models; ModelParallelStrategy shards them. Use DDP"
            )


def require_unpruned(trainer: Trainer, sparsifier: Sparsifier) -> None:
    """Raise ValueError if Lightning's own pruning is about to replace a selected weight."""
    names = {id(weight.param): weight.name for weight in sparsifier.weights}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_kind(callback, "ModelPruning"):
            pruned = [names.get(id(getattr(module, name, None))) for module, name in callback._parameters_to_prune]
            if selected := [name for name in pruned if name is not None]:
                raise ValueError(
                    f"ModelPruning prunes {', '.join(selected)}, which {'is' if len(selected) == 1 else 'are'} trained "
                    "sparse here; leave them to one of the two callbacks (ignore=[...], or parameters_to_prune=[...])"
                )


def require_followed(sparsifier: Sparsifier) -> None:
    """Raise RuntimeError if weights move, but by no optimizer step that PyTorch announces."""
    if sparsifier.steps:
        return
    if moved := [weight.name for weight in sparsifier.weights if weight.touched()]:
        raise RuntimeError(
            f"the weights {moved} were updated, but by no step of a torch.optim.Optimizer: masks and hidden parts "
            "cannot follow. Update them by an optimizer derived from torch.optim.Optimizer"
        )


def cautions(trainer: Trainer) -> list[str]:
    """What costs speed or state in silence."""
    said = []
    if compiled_cpu() is None:
        said.append("numba does not import, so masks on a CPU are found by plain torch, several times slower")
    if is_kind(trainer.strategy.launcher, "_MultiProcessingLauncher"):
        # of what the processes of ddp_spawn and ddp_fork hold, Lightning brings back the weights only
        said.append(
            "masks and hidden parts stay in the processes that the strategy starts; to train on later, resume from a "
            "checkpoint that was saved during this fit"
        )
    return said
