"""Methods of a remote value, called as if it were here: `rref.rpc_sync().method(...)`.

One rule: a proxy sends names; the owner looks the method up on the value that it has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from zrpc.errors import NotImportable
from zrpc.runtime.futures import Future
from zrpc.runtime.methods import invoke

Rref = Any
"""An `RRef`, which is made with this module, and so not known to it."""
Invocation = Callable[..., Any]
"""Calls a method: (reference, timeout, name of the method, its arguments)."""


class RRefProxy:
    """Stands for the value of an RRef: each attribute is a function that calls the method of that name on the owner."""

    __slots__ = ("__invocation", "__rref", "__timeout")

    def __init__(self, rref: Rref, invocation: Invocation, timeout: float) -> None:
        self.__rref = rref
        self.__invocation = invocation
        self.__timeout = timeout

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self.__invocation, self.__rref, self.__timeout, name)

    def __repr__(self) -> str:
        return f"<proxy of {self.__rref}, by {self.__invocation.__name__}>"


def invoke_sync(rref: Rref, timeout: float, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method and wait for its result."""
    return rref._calls.caller.call_sync(rref.owner(), invoke, (rref, name, args, kwargs), None, timeout)


def invoke_async(rref: Rref, timeout: float, name: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
    """Call a method; returns a future of its result."""
    return rref._calls.caller.call_async(rref.owner(), invoke, (rref, name, args, kwargs), None, timeout)  # type: ignore[no-any-return]


def invoke_remote(rref: Rref, timeout: float, name: str, /, *args: Any, **kwargs: Any) -> Rref:
    """Call a method whose result stays with the owner; returns a reference to it.

    Waits for the value, to say here that it has no such method: a reference could tell of it only when it is used.
    """
    check_method(rref, timeout, name)
    calls = rref._calls
    return type(rref).of(
        calls.references, *calls.remote(rref.owner(), invoke, (rref, name, args, kwargs), None, timeout)
    )


def check_method(rref: Rref, timeout: float, name: str) -> None:
    """Raise `AttributeError` if the value's class has no such attribute, as far as that can be known here."""
    try:
        cls = rref._get_type(timeout)
    except NotImportable:
        return  # only the owner has the class
    if not issubclass(cls, (torch.jit.ScriptModule, torch._C.ScriptModule)) and not hasattr(cls, "__getattr__"):
        getattr(cls, name)
