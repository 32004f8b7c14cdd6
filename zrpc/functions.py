"""Decorators for functions that others call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from zrpc.runtime.callables import ASYNC_ATTRIBUTE

F = TypeVar("F", bound=Callable[..., object])


def async_execution(fn: F) -> F:
    """Declare that `fn` returns a `torch.futures.Future`, whose value is the call's result.

    The worker answers when the future is complete, and keeps no thread waiting meanwhile. Works on Python functions, on
    static and class methods (above or below their decorators), and on functions of `torch.jit.script` (put this decorator
    above that one). An `async def` needs no decorator.
    """
    if isinstance(fn, (staticmethod, classmethod)):
        return type(fn)(async_execution(fn.__func__))

    @functools.wraps(fn)
    def wrapper(*args: object, **kwargs: object) -> object:
        return fn(*args, **kwargs)

    setattr(wrapper, ASYNC_ATTRIBUTE, fn)
    return wrapper  # type: ignore[return-value]
