"""Which weights become sparse, and why the others do not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd
from pydoc import locate
from typing import NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_nm.patterns import Pattern, parse
from lightning_nm.training import shards
from lightning_nm.training.layers import LAZY, VECTOR, Gemm, Role, role

PatternLike = str | int | Sequence[int] | Pattern


class Selected(NamedTuple):
    """A weight that becomes sparse."""

    name: str
    param: nn.Parameter
    pattern: Pattern
    dim: int


class Skipped(NamedTuple):
    """A parameter that stays dense."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Selection:
    """Every parameter of a model, selected or skipped with the reason."""

    weights: list[Selected]
    skipped: list[Skipped]
    unmatched: list[str]
    """Globs and layer types that matched no parameter."""

    @property
    def waiting(self) -> int:
        """Number of parameters that lazy layers have yet to get: select again after a forward."""
        return sum(skipped.reason == LAZY for skipped in self.skipped)

    def require(self) -> Selection:
        """Return this selection if it is worth training with.

        Raises:
            ValueError: nothing was selected, or a glob or layer type matched nothing (a typo would
                otherwise leave layers dense, or make them sparse, in silence).
        """
        if self.unmatched:
            matrices = [w.name for w in self.weights] + [s.name for s in self.skipped if s.reason != VECTOR]
            names = ", ".join(matrices[:8])
            raise ValueError(f"these match no parameter: {self.unmatched}. Parameters are named like {names}")
        if not self.weights:
            reasons = "\n".join(f"  {s.name} {list(s.shape)}: {s.reason}" for s in self.skipped if s.reason != VECTOR)
            raise ValueError(f"no weight was selected to become sparse:\n{reasons or '  the model has no weights'}")
        return self


def skipped_rows(skipped: Sequence[Skipped]) -> list[tuple[str, object, str]]:
    """(name, shape, reason) of each parameter that stays dense, for tables; vectors share a row."""
    rows: list[tuple[str, object, str]] = [(s.name, list(s.shape), s.reason) for s in skipped if s.reason != VECTOR]
    if vectors := len(skipped) - len(rows):
        name = f"{vectors} vector{'s' if vectors > 1 else ''}"
        rows.append((name, "", "biases and scales: no GEMM sums over them"))
    return rows


class Owner(NamedTuple):
    """A module that holds a parameter."""

    name: str
    """Of the parameter, there."""
    module: nn.Module
    role: Role


def plain_name(name: str) -> str:
    """A parameter's name before ``torch.compile(module)`` wrapped a module above it."""
    return name.replace("_orig_mod.", "")


def owners_of(model: nn.Module) -> dict[nn.Parameter, list[Owner]]:
    """Every parameter with all the modules that hold it, in the order of ``named_parameters()``."""
    owners: dict[nn.Parameter, list[Owner]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, param in module.named_parameters(recurse=False, remove_duplicate=False):
            name = plain_name(f"{prefix}.{key}" if prefix else key)
            owners.setdefault(param, []).append(Owner(name, module, role(module, key, param)))
    return owners


def _ancestry(name: str) -> Iterator[str]:
    """``a.b.weight`` -> itself, ``a.b``, ``a``."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _matches(glob: str, owners: Sequence[Owner]) -> bool:
    return any(fnmatchcase(name, glob) for owner in owners for name in _ancestry(owner.name))


def _is_type(wanted: str | type[nn.Module], module: nn.Module) -> bool:
    if not isinstance(wanted, str):
        return isinstance(module, wanted)
    if "." in wanted:
        layer = locate(wanted)
        return isinstance(layer, type) and isinstance(module, layer)
    return any(c.__name__ == wanted for c in type(module).__mro__)


class _Rules:
    """What the user asked for, and which of it has met a parameter."""

    def __init__(
        self,
        model: nn.Module,
        pattern: PatternLike,
        include: Sequence[str] | None,
        ignore: Sequence[str],
        module_types: Sequence[str | type[nn.Module]] | None,
        overrides: Mapping[str, PatternLike | None],
        ignore_last_linear: bool,
    ) -> None:
        for name, globs in (("include", include), ("ignore", ignore), ("module_types", module_types)):
            if isinstance(globs, str):
                raise ValueError(f"{name} takes a list, got the string {globs!r}")
        self.pattern = parse(pattern)
        self.include = include
        self.ignore = ignore
        self.module_types = module_types
        self.overrides = {glob: None if p is None else parse(p) for glob, p in overrides.items()}
        linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
        self.last_linear = linears[-1] if linears and ignore_last_linear else None
        self.unmet = dict.fromkeys(str(rule) for rule in (*(include or ()), *ignore, *(module_types or ()), *overrides))

    def _first_met(self, globs: Sequence[str], owners: Sequence[Owner]) -> str | None:
        met = [glob for glob in globs if _matches(glob, owners)]
        for glob in met:
            self.unmet.pop(glob, None)
        return met[0] if met else None

    def decide(self, param: nn.Parameter, owners: Sequence[Owner]) -> tuple[Pattern, Gemm] | str:
        """The pattern and the GEMM of one parameter, or the reason why it stays dense."""
        # every rule is looked at before any decides, so that none counts as unmatched for being outvoted
        included = self.include is None or self._first_met(self.include, owners)
        ignored = self._first_met(self.ignore, owners)
        overridden = self._first_met(list(reversed(self.overrides)), owners)
        of_type = self._of_type(owners)
        gemms = [owner.role for owner in owners if isinstance(owner.role, Gemm)]
        others = [owner for owner in owners if isinstance(owner.role, str)]
        if not gemms:
            return str(others[0].role)
        if overridden is not None:
            pattern = self.overrides[overridden]
            if pattern is None:
                return f"left dense by the override {overridden!r}"
        else:
            pattern = self.pattern
            if ignored is not None:
                return f"ignored by {ignored!r}"
            if not included:
                return f"not included by {list(self.include or ())}"
            if not of_type:
                return f"not one of the layer types {[getattr(t, '__name__', t) for t in self.module_types or ()]}"
            if any(owner.module is self.last_linear for owner in owners):
                return "the last Linear, left dense by ignore_last_linear"
            if others:
                return f"shared with {others[0].name} ({others[0].role}); override it by name to make both sparse"
        if len({gemm.dim for gemm in gemms}) > 1:
            return f"shared by {[o.name for o in owners]}, which sum over different dimensions of it"
        span, rows = gcd(*[gemm.span for gemm in gemms]), gcd(*[gemm.rows for gemm in gemms])
        if reason := pattern.why_not(param.shape, dim=gemms[0].dim, span=span, rows=rows):
            return reason
        shards.uncut(owners[0].name, param, pattern, gemms[0].dim)
        return pattern, gemms[0]

    def _of_type(self, owners: Sequence[Owner]) -> bool:
        met = [t for t in self.module_types or () if any(_is_type(t, owner.module) for owner in owners)]
        for wanted in met:
            self.unmet.pop(str(wanted), None)
        return self.module_types is None or bool(met)


def select(
    model: nn.Module,
    pattern: PatternLike = "2:4",
    *,
    include: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    module_types: Sequence[str | type[nn.Module]] | None = None,
    overrides: Mapping[str, PatternLike | None] | None = None,
    ignore_last_linear: bool = False,
) -> Selection:
    """Choose the weights of ``model`` that become sparse.

    By default every weight that a GEMM reads and that the pattern fits: Linear, convolutions
    (transposed and grouped too), attention projections, LSTM, GRU and RNN weights, GPT-2's Conv1D,
    and what `register_layer` added.

    A glob (`fnmatch`, ``*`` crosses dots) is held against a parameter's name and the names of all the
    modules above it, so ``"head"`` covers ``head.weight`` and ``head.0.weight``.

    Args:
        pattern: for every selected weight that no override names.
        include: globs; only what matches one is selected. None: everything.
        ignore: globs; what matches one stays dense.
        module_types: only weights of these layer types: classes, their names (``"Linear"``) or import
            paths (``"torch.nn.Linear"``). None: all.
        overrides: glob -> pattern, or None to leave the match dense. The last glob that matches
            decides, and goes before every other rule.
        ignore_last_linear: leave the model's last Linear (a classifier's head) dense.

    Returns:
        The selection. Call its ``require()`` to refuse an empty one.

    Raises:
        ValueError: a pattern that cannot be read, or a string where a list belongs; a weight that is
            sharded in a way that cuts its groups; a model that FSDP1 has flattened.
    """
    shards.reshard(model)
    rules = _Rules(model, pattern, include, ignore, module_types, overrides or {}, ignore_last_linear)
    weights, skipped = [], []
    for param, owners in owners_of(model).items():
        decision = rules.decide(param, owners)
        if isinstance(decision, str):
            shape = () if is_lazy(param) else tuple(param.shape)
            skipped.append(Skipped(owners[0].name, shape, decision))
        else:
            weights.append(Selected(owners[0].name, param, decision[0], decision[1].dim))
    return Selection(weights, skipped, list(rules.unmet))
