"""Python imports this first in processes that have its folder on PYTHONPATH. It waits for torch, then installs zrpc.

One rule: a process that does not import torch notices nothing, and the `sitecustomize` that would have been imported
without this one still is.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

INSTALLER = "zrpc.compat"
"""Imported when torch is there, and not before: it imports torch."""


class _Then(Loader):
    """Loads torch as it would be, then installs zrpc in it."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module(INSTALLER).install()


class _WhenTorch(MetaPathFinder):
    """Finds torch, once."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


def _import_the_other() -> None:
    """The environment may have a `sitecustomize` of its own, which this one hides."""
    here = os.path.dirname(os.path.abspath(__file__))
    spec = PathFinder.find_spec("sitecustomize", [path for path in sys.path if os.path.abspath(path) != here])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if os.environ.get("ZRPC_COMPAT") == "1" and "torch" not in sys.modules:
    sys.meta_path.insert(0, _WhenTorch())
_import_the_other()
