"""Do something as soon as somebody imports a module, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def when_loaded(module: str, action: Callable[[], object]) -> None:
    """Call ``action`` after ``module`` has been imported: at once if it has been."""
    if module in sys.modules:
        action()
    else:
        sys.meta_path.insert(0, _Watch(module, action))


class _Watch(MetaPathFinder):
    """Finds nothing itself; has the loader of one module call back."""

    def __init__(self, module: str, action: Callable[[], object]) -> None:
        self._module, self._action = module, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._module:
            return None
        after = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next((spec for finder in after if (spec := finder.find_spec(fullname, path, target))), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader, self._done)  # which is not always imported: many only ask what there is
        return spec

    def _done(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self._action()


class _Then(Loader):
    """A loader, and what to do when it is done."""

    def __init__(self, loader: Loader, action: Callable[[], object]) -> None:
        self._loader, self._action = loader, action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader  # as if nobody had been here
        self._loader.exec_module(module)
        self._action()
