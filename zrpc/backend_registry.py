"""Backends by name, as `torch.distributed.rpc.backend_registry` has them.

One rule: zrpc is the backend, and answers to TensorPipe's name; others cannot be added.
"""

from __future__ import annotations

import enum
from typing import Any

from zrpc.backend_options import RpcBackendOptions, TensorPipeRpcBackendOptions
from zrpc.constants import DEFAULT_INIT_METHOD, DEFAULT_RPC_TIMEOUT_SEC


class BackendType(enum.Enum):
    """The backends that `init_rpc` takes: the one. It is zrpc's, by the name that programs use."""

    TENSORPIPE = "zrpc"

    def __repr__(self) -> str:
        return f"BackendType.{self.name}"


def backend_registered(backend_name: str) -> bool:
    """Whether there is a backend of that name."""
    return backend_name in BackendType.__members__


def register_backend(backend_name: str, *handlers: Any) -> BackendType:
    """Raises `RuntimeError`: there is one backend, and no other can be added."""
    if backend_registered(backend_name):
        raise RuntimeError(f"RPC backend {backend_name}: already registered")
    raise RuntimeError(f"RPC backend {backend_name}: zrpc has one backend and takes no others")


def construct_rpc_backend_options(
    backend: BackendType,
    rpc_timeout: float = DEFAULT_RPC_TIMEOUT_SEC,
    init_method: str = DEFAULT_INIT_METHOD,
    **kwargs: Any,
) -> TensorPipeRpcBackendOptions:
    """The options of a backend."""
    return TensorPipeRpcBackendOptions(rpc_timeout=rpc_timeout, init_method=init_method, **kwargs)


def check_backend(backend: Any, options: Any) -> TensorPipeRpcBackendOptions:
    """The options for a backend, both as given to `init_rpc`. Raises `TypeError`, in torch's words, when they are wrong."""
    if backend is not None and not isinstance(backend, BackendType):
        raise TypeError("Argument backend must be a member of BackendType")
    if options is None:
        return TensorPipeRpcBackendOptions()
    if not isinstance(options, RpcBackendOptions):
        raise TypeError("Argument rpc_backend_options must be an instance of RpcBackendOptions")
    if isinstance(options, TensorPipeRpcBackendOptions):
        return options
    if backend is None:
        raise TypeError(f"Could not infer backend for options {options}")
    raise TypeError(f"`rpc_backend_options` must be a `TensorPipeRpcBackendOptions`. {options}")
