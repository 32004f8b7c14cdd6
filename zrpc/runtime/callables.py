"""What a caller may pass as a function, and how each kind goes into an envelope.

One rule: what a function is, is decided once, here.

    what                                   codec     function in the header        body
    torch.jit.ScriptFunction, its method   SCRIPT    qualified name (+ code hash)  bound arguments
    torch builtin, or a name (str)         BUILTIN   qualified name                (arguments, keyword arguments)
    ScriptFunction that calls Python       BUILTIN   qualified name                (arguments, keyword arguments)
    any other callable                     PYTHON    module:qualified name         (callable, arguments, keywords)
    a name (str) with a colon              PYTHON    module:qualified name         (None, arguments, keywords)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.jit._builtins import _find_builtin

from zrpc.errors import LocalFault
from zrpc.serialization.script import ScriptCallable, describe, is_script
from zrpc.wire.envelope import Codec

ASYNC_ATTRIBUTE = "_wrapped_async_rpc_function"
"""Where `functions.async_execution` keeps the function that it decorates; torch's name for it."""


_KNOWN: Final = "_zrpc_target"
"""Where a ScriptFunction keeps its target: made once, not for every call."""


class Target:
    """A function that is to be called."""

    __slots__ = ("codec", "func", "is_async", "name", "script")

    def __init__(
        self,
        name: str,
        codec: Codec,
        func: Callable[..., Any] | None = None,
        script: ScriptCallable | None = None,
        is_async: bool = False,
    ) -> None:
        self.name = name
        self.codec = codec
        self.func = func
        self.script = script
        self.is_async = is_async

    def __repr__(self) -> str:
        return f"<Target {self.name} {self.codec.name}>"


def python_name(func: Any) -> str:
    """module:qualified name of a Python callable, as people and allow-lists read it."""
    wrapped = getattr(func, "func", func)  # functools.partial
    name = getattr(wrapped, "__qualname__", None) or type(wrapped).__qualname__
    module = getattr(wrapped, "__module__", None) or type(wrapped).__module__
    return f"{module}:{name}"


def identify(func: Any) -> Target:
    """How `func` is called. Raises `LocalFault` for what cannot be called."""
    if type(func) is torch.jit.ScriptFunction:
        known: Target | None = getattr(func, _KNOWN, None)
        if known is not None:
            return known
    if isinstance(func, str):
        if not func or len(func) > 1024:
            raise LocalFault(f"a function's name has 1 to 1024 characters, not {len(func)}")
        is_python = ":" in func and "::" not in func
        return Target(func, Codec.PYTHON if is_python else Codec.BUILTIN)
    wrapped = getattr(func, ASYNC_ATTRIBUTE, None)
    is_async = wrapped is not None
    if isinstance(wrapped, torch.jit.ScriptFunction):
        func = wrapped
    if is_script(func):
        script = describe(func)
        if not script.can_travel:
            return Target(script.name, Codec.BUILTIN, func, None, is_async)
        target = Target(script.name, Codec.SCRIPT, func, script, is_async)
        if type(func) is torch.jit.ScriptFunction and not is_async:
            setattr(func, _KNOWN, target)
        return target
    if not callable(func):
        raise LocalFault(f"a remote call takes a function or its name, not {type(func).__name__} {func!r}")
    builtin = None if is_async else _find_builtin(func)  # type: ignore[no-untyped-call]
    if builtin is not None:
        return Target(builtin, Codec.BUILTIN, func)
    return Target(python_name(func), Codec.PYTHON, func, None, is_async)


def refuse_script_method(target: Target) -> None:
    """Raise `TypeError` for a method of a ScriptModule, as torch's RPC does."""
    if isinstance(target.func, torch._C.ScriptMethod):
        raise TypeError(
            "cannot pickle 'ScriptMethod' object: a method of a ScriptModule can be called only by a worker that was "
            "given AgentOptions, not a torch backend's options"
        )
