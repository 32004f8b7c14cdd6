"""A torch operator that makes a call: the way to call from inside TorchScript.

One rule: it carries tensors only. TorchScript without torch's own RPC knows neither `rpc_async` nor a type for RRefs, but
it knows operators:

    zrpc::call(str to, str function, Tensor[] args, float timeout=-1) -> Tensor[]

`to` names the worker; `function` is the name of a function that it has (a TorchScript function that was loaded or scripted
there, a torch operator, module:function), which takes the tensors in `args` one by one. The result is the list of the
tensors that it returns: one for a Tensor, several for a list or a tuple of them.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from zrpc.errors import LocalFault
from zrpc.runtime.context import current_agent

SCHEMA = "call(str to, str function, Tensor[] args, float timeout=-1) -> Tensor[]"

_lock = threading.Lock()
_library: torch.library.Library | None = None


def register_operators() -> None:
    """Make `torch.ops.zrpc.call` known to torch. Do it before a script function that uses it is compiled or loaded.

    Once is enough for a process; more does nothing. A worker that is sent such a function must have done it too.
    """
    global _library
    with _lock:
        if _library is None:
            library = torch.library.Library("zrpc", "DEF")  # type: ignore[no-untyped-call]
            library.define(SCHEMA)  # type: ignore[no-untyped-call]
            # Not bound to a device: an empty list of tensors has none to choose by.
            library.impl("call", _call, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
            _library = library


def _call(to: str, function: str, args: list[torch.Tensor], timeout: float = -1) -> list[torch.Tensor]:
    agent = current_agent("zrpc::call")
    result: Any = agent.caller.call_sync(to, function, tuple(args), None, timeout, "async_jit")
    tensors = [result] if isinstance(result, torch.Tensor) else result
    if not isinstance(tensors, (list, tuple)) or not all(isinstance(item, torch.Tensor) for item in tensors):
        raise LocalFault(
            f"zrpc::call returns tensors, and {function} on worker {to!r} returned a {type(result).__name__}: "
            "call one that returns a Tensor, or a list or tuple of them"
        )
    return list(tensors)
