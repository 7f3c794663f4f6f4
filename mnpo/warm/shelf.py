"""Libraries that are loaded and not imported yet.

What is imported says what a result may rest on: manifests name the versions of such libraries (storage/artifacts.py),
and other libraries ask for them in `sys.modules`. So what a warm process has loaded is put aside, and appears where,
and only where, somebody imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Shelf(MetaPathFinder, Loader):
    """The loaded modules of packages, each package to be had by the first import of one of its modules.

    Args:
        brings: package -> those of the others that it imports.
    """

    def __init__(self, brings: Mapping[str, Sequence[str]]) -> None:
        self._brings = brings
        self._packages: dict[str, dict[str, ModuleType]] = {name: {} for name in brings}
        self._specs: dict[str, ModuleSpec] = {}
        for name in list(sys.modules):
            if (modules := self._packages.get(name.partition(".")[0])) is not None:
                modules[name] = sys.modules.pop(name)
        sys.meta_path.insert(0, self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Of a module on the shelf; asking for it takes nothing off."""
        module = self._packages.get(fullname.partition(".")[0], {}).get(fullname)
        if module is None or module.__spec__ is None:
            return None
        self._specs[fullname] = spec = module.__spec__
        found = ModuleSpec(fullname, self, origin=spec.origin)
        found.submodule_search_locations = spec.submodule_search_locations
        return found

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself: it and its package are off the shelf now."""
        package = spec.name.partition(".")[0]
        module = self._packages[package][spec.name]
        for name in (package, *self._brings[package]):
            sys.modules.update(self._packages.pop(name, {}))
        return module

    def exec_module(self, module: ModuleType) -> None:
        """It was loaded long ago; what the import wrote over is put back."""
        module.__spec__ = self._specs[module.__name__]
