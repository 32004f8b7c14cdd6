"""Which of torch's modules zrpc stands for, and with what.

One rule: a module of torch's that zrpc takes the place of is replaced whole; names that zrpc does not have are not there.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import types
from typing import Any

RPC = "torch.distributed.rpc"
MODULES: dict[str, tuple[str, ...]] = {
    RPC: ("zrpc",),
    f"{RPC}.api": ("zrpc.api", "zrpc.collectives", "zrpc.debug", "zrpc"),
    f"{RPC}.backend_registry": ("zrpc.backend_registry",),
    f"{RPC}.constants": ("zrpc.constants",),
    f"{RPC}.functions": ("zrpc.functions",),
    f"{RPC}.internal": ("zrpc.internal",),
    f"{RPC}.options": ("zrpc.backend_options",),
    f"{RPC}.rref_proxy": ("zrpc.rref_proxy",),
    "torch.distributed.autograd": ("zrpc.autograd",),
    "torch.distributed.nn.api.remote_module": ("zrpc.nn.api.remote_module",),
}
"""torch's module, and the modules of zrpc where its names are looked for; those that do not exist are left out."""
ATTRIBUTES: tuple[tuple[str, str, str], ...] = (
    ("torch.distributed.optim", "DistributedOptimizer", "zrpc.optim"),
    ("torch.distributed.nn", "RemoteModule", "zrpc.nn"),
    ("torch.nn.parallel.distributed", "RRef", "zrpc.rref"),
)
"""Names in modules that stay torch's own, and the module of zrpc that has them."""


class Alias(types.ModuleType):
    """A module by torch's name that reads and writes through to zrpc's."""

    def __init__(self, name: str, targets: tuple[types.ModuleType, ...]) -> None:
        super().__init__(name, targets[0].__doc__)
        self.__dict__.update(
            _zrpc_targets=targets,
            __path__=[],
            __package__=name,
            __spec__=importlib.machinery.ModuleSpec(name, None, is_package=True),
        )

    def __reduce__(self) -> Any:
        """A function of `__main__` that uses the alias travels by value; the alias itself goes by its name."""
        return importlib.import_module, (self.__name__,)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__") or name in ("__all__", "__version__"):
            for target in self.__dict__["_zrpc_targets"]:
                try:
                    return getattr(target, name)
                except AttributeError:
                    continue
        raise AttributeError(f"module {self.__name__!r}, which is zrpc's, has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        targets = self.__dict__["_zrpc_targets"]
        if isinstance(value, types.ModuleType):
            self.__dict__[name] = value  # the import system binds a submodule
            return
        setattr(next((target for target in targets if hasattr(target, name)), targets[0]), name, value)

    def __dir__(self) -> list[str]:
        return sorted({name for target in self.__dict__["_zrpc_targets"] for name in dir(target)})


def make_aliases() -> dict[str, Alias]:
    """An alias for each of torch's modules that zrpc has something for."""
    found = {name: tuple(module for module in map(find_module, targets) if module) for name, targets in MODULES.items()}
    return {name: Alias(name, targets) for name, targets in found.items() if targets}


def find_module(name: str) -> types.ModuleType | None:
    """The module of that name, None if there is no such."""
    parent = name.rpartition(".")[0]
    if parent and find_module(parent) is None:
        return None
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)
