"""What is reconstructed together: modules, and the parameters that act through their outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from lightning_nm.training import Selected, Selection
from lightning_nm.training.selection import plain_name


@dataclass(frozen=True)
class Unit:
    """Modules that are called, and the parameters that are fitted to their outputs.

    Mostly one module with its own weight and bias. Several where modules share a weight. Where a weight's module is
    never called (``nn.MultiheadAttention`` only reads its ``out_proj``), the nearest one above it that is.
    """

    modules: dict[nn.Module, str]
    """With their names."""
    weights: list[Selected]
    biases: list[nn.Parameter]

    @property
    def name(self) -> str:
        return " + ".join(name or "the model" for name in self.modules.values())

    @property
    def params(self) -> list[nn.Parameter]:
        return [*(weight.param for weight in self.weights), *self.biases]

    def where(self, weight: Selected) -> str:
        """A remark on a weight that is not fitted at the output of its own module alone."""
        own = weight.name.rpartition(".")[0]
        return "" if [*self.modules.values()] == [own] else f"fitted at the output of {self.name}"

    def joined(self, other: Unit) -> Unit:
        biases = dict.fromkeys([*self.biases, *other.biases])
        return Unit(self.modules | other.modules, [*self.weights, *other.weights], list(biases))


def find_units(model: nn.Module, selection: Selection, run: Callable[[], None]) -> tuple[list[Unit], list[Selected]]:
    """(units in the order in which their first calls end, weights that no called module holds).

    Args:
        model: in the mode in which its modules are called one by one.
        selection: of it.
        run: runs it on the calibration data.

    Raises:
        ValueError: the selection is another model's.
    """
    lines = _lines(model)
    if strangers := [weight.name for weight in selection.weights if weight.param not in lines]:
        raise ValueError(f"the model has no such parameters (any more): {strangers}; select in the model as it is now")
    held = [lines[weight.param] for weight in selection.weights]
    order = _call_order({module for owners in held for line in owners for module in line}, run)
    names = {module: plain_name(name) for name, module in model.named_modules()}

    units: list[Unit] = []
    uncalled = []
    for weight, owners in zip(selection.weights, held):
        called = [line[0] for line in owners if line[0] in order]
        above = [module for line in owners for module in line if module in order]
        if not above:
            uncalled.append(weight)
            continue
        vectors = [p for line in owners for p in line[0].parameters(recurse=False) if p.dim() < 2]
        unit = Unit(
            {module: names[module] for module in called or above[:1]},
            [weight],
            [param for param in dict.fromkeys(vectors) if param.is_floating_point()],
        )
        shared = [other for other in units if other.modules.keys() & unit.modules.keys()]
        for other in shared:
            units.remove(other)
            unit = other.joined(unit)
        units.append(unit)
    return sorted(units, key=lambda unit: min(order[module] for module in unit.modules)), uncalled


def _lines(model: nn.Module) -> dict[nn.Parameter, list[list[nn.Module]]]:
    """For each module that holds a parameter: that module and those above it, the nearest first."""
    lines: dict[nn.Parameter, list[list[nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        line = [module]
        while name:
            name = name.rpartition(".")[0]
            line.append(model.get_submodule(name))
        for param in module.parameters(recurse=False):
            lines.setdefault(param, []).append(line)
    return lines


def _call_order(modules: Iterable[nn.Module], run: Callable[[], None]) -> dict[nn.Module, int]:
    """Each module that ``run`` calls -> its place in the order in which first calls end."""
    order: dict[nn.Module, int] = {}

    def leave(module: nn.Module, args: object, output: object) -> None:
        order.setdefault(module, len(order))

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(leave).remove)
        run()
    return order
