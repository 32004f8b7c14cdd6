"""TorchScript calls, Python calls and remote references between processes, on ZeroMQ."""

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
from zrpc.version import __version__

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
