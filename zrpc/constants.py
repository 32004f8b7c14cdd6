"""Defaults, by the names that `torch.distributed.rpc.constants` gives them. Times are seconds."""

from __future__ import annotations

from datetime import timedelta

from zrpc.options import DEFAULT_NUM_WORKER_THREADS, DEFAULT_RPC_TIMEOUT

DEFAULT_RPC_TIMEOUT_SEC: float = DEFAULT_RPC_TIMEOUT
DEFAULT_INIT_METHOD: str = "env://"
DEFAULT_SHUTDOWN_TIMEOUT: float = 0
"""None."""
DEFAULT_PROCESS_GROUP_TIMEOUT: timedelta = timedelta(milliseconds=2**31 - 1)
"""There for its name: zrpc has no process group."""
UNSET_RPC_TIMEOUT: float = -1
"""A call with this timeout has the default one."""
MEETING_TIMEOUT: float = 1800.0
"""How long `init_rpc` waits for the others at an init method: as long as torch's stores do."""

__all__ = [
    "DEFAULT_INIT_METHOD",
    "DEFAULT_NUM_WORKER_THREADS",
    "DEFAULT_PROCESS_GROUP_TIMEOUT",
    "DEFAULT_RPC_TIMEOUT_SEC",
    "DEFAULT_SHUTDOWN_TIMEOUT",
    "MEETING_TIMEOUT",
    "UNSET_RPC_TIMEOUT",
]
