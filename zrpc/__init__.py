"""TorchScript calls, Python calls and remote references between processes, on ZeroMQ.

One rule: this module re-exports, and does so on demand (PEP 562): tools that only talk to a broker start without torch,
whose import takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zrpc.version import __version__

if TYPE_CHECKING:
    from zrpc import errors, functions
    from zrpc.api import (
        get_worker_info,
        get_workers,
        init_rpc,
        register_script,
        remote,
        rpc_async,
        rpc_sync,
        serve,
        shutdown,
        worker_statistics,
    )
    from zrpc.ids import WorkerInfo
    from zrpc.options import AgentOptions
    from zrpc.rref import RRef
    from zrpc.runtime.futures import Future

__all__ = [
    "AgentOptions",
    "Future",
    "RRef",
    "WorkerInfo",
    "__version__",
    "errors",
    "functions",
    "get_worker_info",
    "get_workers",
    "init_rpc",
    "register_script",
    "remote",
    "rpc_async",
    "rpc_sync",
    "serve",
    "shutdown",
    "worker_statistics",
]

_HOMES = {"AgentOptions": "options", "Future": "runtime.futures", "RRef": "rref", "WorkerInfo": "ids"}
_MODULES = ("errors", "functions")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'zrpc' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"zrpc.{name}")
    value = getattr(importlib.import_module(f"zrpc.{_HOMES.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
