"""What a process does as a member of the cluster, on behalf of the entries in `workers/` and `cli/`.

One rule: whoever joins here leaves here, whatever happens in between.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zrpc import api, lifecycle
from zrpc.errors import RemoteFault, ZrpcError
from zrpc.launch.entries import load_entry, load_modules
from zrpc.launch.literals import parse_call_arguments
from zrpc.launch.target import Target
from zrpc.options import AgentOptions, from_environment
from zrpc.runtime.context import current_agent

FENCED = 1
JOIN_TIMEOUT = 10.0
"""Seconds that a command looks for its broker."""


def serve_to_the_end() -> int:
    """Serve until told to stop, and leave; 1 if this worker was put out of the cluster, so that it may be restarted."""
    lifecycle.serve()
    current = current_agent()
    fenced = current.fenced
    # Told to stop: the others may be gone already, so there is nobody to wait for.
    api.shutdown(graceful=False)
    if current.leaving.is_hurried:
        # Functions may run still, on threads that must not meet an interpreter that ends around them.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    if fenced is not None:
        print(f"put out of the cluster: {fenced}", flush=True)
        return FENCED
    return 0


def run_entry(entry: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Run a worker's entry; when a signal has ended it, the worker goes on to its end as one that serves does."""
    try:
        lifecycle.run_main(entry, arguments)
    except SystemExit:
        if not lifecycle.stop_requested():
            raise


def serve_by_hand(target: Target, name: str, role: str | None, modules: Sequence[str], entry: str | None) -> int:
    """Be a worker until told to stop, with the options of `ZRPC_OPTIONS`. Raises what `init_rpc` raises."""
    load_modules(modules)
    function = load_entry(entry) if entry else None
    options = from_environment().replace(security=target.key_file is not None)
    api.init_rpc(name, broker=target.broker, key_file=target.key_file, role=role, options=options)
    print(f"worker {name} has joined the cluster at {target.broker}", flush=True)
    if function is not None:
        run_entry(function, {})
    return serve_to_the_end()


def call_once(target: Target, worker: str, function: str, texts: Sequence[str], timeout: float) -> Any:
    """Join, call `function` on `worker`, leave, and return the result.

    Raises `RemoteFault` for whatever the function raised, and what `rpc_sync` raises otherwise.
    """
    args, kwargs = parse_call_arguments(texts)
    name = f"call-{os.getpid()}-{secrets.token_hex(3)}"
    options = AgentOptions(security=target.key_file is not None, init_timeout=JOIN_TIMEOUT)
    api.init_rpc(name, broker=target.broker, key_file=target.key_file, role="tool", options=options)
    try:
        return api.rpc_sync(worker, function, tuple(args), kwargs, timeout)
    except ZrpcError:
        raise
    except Exception as error:
        raise RemoteFault(f"{type(error).__name__}: {error}", type(error).__name__, worker) from error
    finally:
        api.shutdown(graceful=False)
