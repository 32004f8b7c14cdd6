"""What is asked of a value at its owner: a call of one of its methods, its type, the gradients of what it was made from.

One rule: each function here takes a reference first, which is owned where the function runs. The callee starts it when the
value is there, so none of them holds a thread while it waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import CoroutineType
from typing import Any

import torch

from zrpc.errors import RRefMisuse
from zrpc.runtime.callables import ASYNC_ATTRIBUTE
from zrpc.runtime.handles import Reference
from zrpc.serialization.script import is_script

NO_CONTEXT = -1
"""The autograd context id that means: none."""


def invoke(reference: Reference, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a method of the value. A future comes back only if the method is one of `async_execution`, or a script's."""
    method = getattr(reference.local_value(), name)
    value = method(*args, **kwargs)
    if isinstance(value, CoroutineType):
        return value
    is_future = isinstance(value, torch._C.Future)
    if is_future != hasattr(method, ASYNC_ATTRIBUTE) and not is_script(method):
        if is_future:
            raise RuntimeError(
                f"Can not pickle torch.futures.Future: {name}() returned one, and is not decorated with async_execution"
            )
        raise RuntimeError(not_a_future(value, name))
    return value


def type_of(reference: Reference) -> type:
    """The type of the value."""
    return type(reference.local_value())


def backward(reference: Reference, context_id: int, retain_graph: bool) -> None:
    """Compute gradients from the value on, a tensor of one element."""
    root = reference.local_value()
    if not isinstance(root, torch.Tensor):
        raise RRefMisuse("RRef should contain a tensor for .backward()")
    if context_id == NO_CONTEXT:
        torch.autograd.backward((root,), retain_graph=retain_graph)
        return
    contexts = reference.contexts
    assert contexts is not None
    contexts.backward(context_id, [root], retain_graph)


def not_a_future(value: Any, function: str | None) -> str:
    """What is wrong with the result of a function that `async_execution` decorates."""
    return (
        "Functions decorated with @rpc.async_function must return a torch.futures.Future object, "
        f"but got {type(value)}: {function}"
    )
