"""The weights that will be sparse, and how much of them their patterns retain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_nm.conversion.rearrangement.spaces import Moves
from lightning_nm.training import Selected, Selection, shards


class Weights:
    """Copies of the selected weights, moved as the orders of spaces are found, and what each retains.

    Raises:
        ValueError: the selection is another model's, or a weight is sharded or holds NaN or infinity.
    """

    def __init__(self, model: nn.Module, selection: Selection) -> None:
        # a selection names tied parameters by their first owner, as named_parameters does
        names = {param: name for name, param in model.named_parameters()}
        if strangers := [weight.name for weight in selection.weights if weight.param not in names]:
            raise ValueError(
                f"the model has no such parameters (any more): {strangers}; select in the model as it is now"
            )
        if sharded := [weight.name for weight in selection.weights if shards.is_sharded(weight.param)]:
            raise ValueError(f"{sharded[0]} is sharded over several processes; rearrange the whole model in one")
        self.held: dict[str, Selected] = {}
        self.retained: dict[str, float] = {}
        self._total: dict[str, float] = {}
        for weight in selection.weights:
            values = nn.Parameter(weight.param.detach().float().cpu(), requires_grad=False)
            name = names[weight.param]
            self.held[name] = weight._replace(param=values)
            self._total[name] = float(values.abs().sum(dtype=torch.float64))
            try:
                self.retained[name] = _retained(self.held[name], values)
            except ValueError as error:
                raise ValueError(f"{weight.name}: {error}") from None

    def share(self, names: list[str] | None = None) -> float:
        """Share of the magnitude that is retained."""
        names = list(self.held) if names is None else names
        total = sum(self._total[name] for name in names)
        return sum(self.retained[name] for name in names) / total if total else 1.0

    def move(self, names: list[str], moves: Moves) -> bool:
        """Apply ``moves`` if these weights retain more afterwards."""
        moved = {name: moves.apply(name, self.held[name].param.data) for name in names}
        retained = {name: _retained(self.held[name], values) for name, values in moved.items()}
        # sums in another order differ in their last digits
        if sum(retained.values()) <= sum(self.retained[name] for name in names) * (1 + 1e-9):
            return False
        for name in moves.names:
            if name in self.held:
                param = self.held[name].param
                param.data = moves.apply(name, param.data)
        self.retained |= retained
        return True


def _retained(weight: Selected, values: Tensor) -> float:
    mask = weight.pattern.mask(values, dim=weight.dim)
    return float(torch.where(mask, values, 0.0).abs().sum(dtype=torch.float64))
