"""TorchScript calls, Python calls and remote references between processes, on ZeroMQ.

One rule: this module re-exports, and does so on demand (PEP 562): tools that only talk to a broker start without torch,
whose import takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zrpc.version import __version__

if TYPE_CHECKING:
    from zrpc import aio, autograd, checkpoint, errors, functions, nn, optim
    from zrpc.api import (
        get_rpc_timeout,
        get_worker_info,
        get_workers,
        init_rpc,
        register_script,
        remote,
        rpc_async,
        rpc_sync,
        shutdown,
        worker_statistics,
    )
    from zrpc.backend_options import RpcBackendOptions, TensorPipeRpcBackendOptions
    from zrpc.backend_registry import BackendType
    from zrpc.ids import WorkerInfo
    from zrpc.lifecycle import on_checkpoint, on_membership, restart_count, serve, stop_requested, wait_for
    from zrpc.operators import register_operators
    from zrpc.options import AgentOptions
    from zrpc.rref import RRef
    from zrpc.runtime.futures import Future, cancel, collect_all, wait_all
    from zrpc.runtime.retrying import Role
    from zrpc.runtime.scopes import check_cancelled
    from zrpc.runtime.watch import MembershipEvent
    from zrpc.tracing import trace
    from zrpc.version import is_available

__all__ = [
    "AgentOptions",
    "BackendType",
    "Future",
    "MembershipEvent",
    "RRef",
    "Role",
    "RpcBackendOptions",
    "TensorPipeRpcBackendOptions",
    "WorkerInfo",
    "__version__",
    "aio",
    "autograd",
    "cancel",
    "check_cancelled",
    "checkpoint",
    "collect_all",
    "errors",
    "functions",
    "get_rpc_timeout",
    "get_worker_info",
    "get_workers",
    "init_rpc",
    "is_available",
    "nn",
    "on_checkpoint",
    "on_membership",
    "optim",
    "register_operators",
    "register_script",
    "remote",
    "restart_count",
    "rpc_async",
    "rpc_sync",
    "serve",
    "shutdown",
    "stop_requested",
    "trace",
    "wait_all",
    "wait_for",
    "worker_statistics",
]

_HOMES = {
    "AgentOptions": "options",
    "BackendType": "backend_registry",
    "Future": "runtime.futures",
    "MembershipEvent": "runtime.watch",
    "RRef": "rref",
    "Role": "runtime.retrying",
    "RpcBackendOptions": "backend_options",
    "TensorPipeRpcBackendOptions": "backend_options",
    "WorkerInfo": "ids",
    "cancel": "runtime.futures",
    "check_cancelled": "runtime.scopes",
    "collect_all": "runtime.futures",
    "is_available": "version",
    "on_checkpoint": "lifecycle",
    "on_membership": "lifecycle",
    "restart_count": "lifecycle",
    "register_operators": "operators",
    "serve": "lifecycle",
    "stop_requested": "lifecycle",
    "trace": "tracing",
    "wait_all": "runtime.futures",
    "wait_for": "lifecycle",
}
_MODULES = ("aio", "autograd", "checkpoint", "errors", "functions", "nn", "optim")

# Names of torch.distributed.rpc that programs use although they are not public, and its modules: there, but not listed.
_ALSO = {
    "PyRRef": "rref.RRef",
    "RpcAgent": "debug.RpcAgent",
    "TensorPipeAgent": "debug.TensorPipeAgent",
    "_DEFAULT_INIT_METHOD": "constants.DEFAULT_INIT_METHOD",
    "_DEFAULT_NUM_WORKER_THREADS": "constants.DEFAULT_NUM_WORKER_THREADS",
    "_DEFAULT_RPC_TIMEOUT_SEC": "constants.DEFAULT_RPC_TIMEOUT_SEC",
    "_UNSET_RPC_TIMEOUT": "constants.UNSET_RPC_TIMEOUT",
    "_delete_all_user_and_unforked_owner_rrefs": "leaks._delete_all_user_and_unforked_owner_rrefs",
    "_destroy_rref_context": "leaks._destroy_rref_context",
    "_get_current_rpc_agent": "debug._get_current_rpc_agent",
    "_get_debug_info": "debug._get_debug_info",
    "_is_current_rpc_agent_set": "debug._is_current_rpc_agent_set",
    "_rref_context_get_debug_info": "debug._rref_context_get_debug_info",
    "_server_process_global_profile": "server_profile._server_process_global_profile",
    "_set_rpc_timeout": "debug._set_rpc_timeout",
    "backend_registered": "backend_registry.backend_registered",
    "construct_rpc_backend_options": "backend_registry.construct_rpc_backend_options",
    "enable_gil_profiling": "debug.enable_gil_profiling",
    "register_backend": "backend_registry.register_backend",
}
_ALSO_MODULES = ("api", "backend_registry", "constants", "internal", "options")


def __getattr__(name: str) -> Any:
    if name in _ALSO:
        home, _, attribute = _ALSO[name].rpartition(".")
        return getattr(importlib.import_module(f"zrpc.{home}"), attribute)
    if name in _ALSO_MODULES:
        return importlib.import_module(f"zrpc.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'zrpc' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"zrpc.{name}")
    value = getattr(importlib.import_module(f"zrpc.{_HOMES.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
