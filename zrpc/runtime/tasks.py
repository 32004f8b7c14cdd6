"""A call that is being served, and what serving one needs that is nobody's in particular.

One rule: a task says what is known of a call; what becomes of it is decided by the callee.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import torch

from zrpc.errors import UnknownFunction
from zrpc.ids import GloballyUniqueId
from zrpc.runtime.recording import Recorder
from zrpc.runtime.scopes import Scope
from zrpc.serialization.script import ScriptError
from zrpc.telemetry.trace import place_of
from zrpc.wire.envelope import Envelope, Extra


class Asker(Protocol):
    """The way back to whoever sent a message."""

    def answer(self, frames: Any) -> None:
        """Send frames back. Raises `Unavailable` when there is nobody any more."""


class Task(Scope):
    """A call that is being served."""

    __slots__ = (
        "arrived",
        "asker",
        "began",
        "envelope",
        "func",
        "has_started",
        "is_async",
        "key",
        "recorder",
        "sender",
        "size",
        "thread",
    )

    def __init__(self, asker: Asker, envelope: Envelope, func: Callable[..., Any] | None, now: float) -> None:
        super().__init__(now + envelope.time_left_us * 1e-6 if envelope.time_left_us else None)
        self.asker = asker
        self.envelope = envelope
        self.func = func
        self.sender = envelope.sender, envelope.sender_incarnation
        self.key = (*self.sender, envelope.message_id)
        self.has_started = False
        self.arrived = now
        self.began = 0.0
        self.thread = 0
        self.is_async = envelope.extra is not None and bool(envelope.extra.get(Extra.ASYNC))
        self.size = envelope.nbytes()
        self.recorder: Recorder | None = None

    @property
    def function(self) -> str:
        """Its name."""
        return self.envelope.function or "?"

    @property
    def value(self) -> tuple[int, int] | None:
        """The ids of the remote value that the call creates."""
        rref = self.envelope.rref
        return None if rref is None else (rref[0], rref[1])

    @property
    def trace(self) -> bytes | None:
        """Where calls that the function makes belong in a trace."""
        return place_of(self.envelope)

    @property
    def rref_id(self) -> GloballyUniqueId | None:
        """The remote value that the call creates, if it is one that does."""
        rref = self.envelope.rref
        return None if rref is None else GloballyUniqueId(rref[0], rref[1])


def as_runtime_error(error: BaseException) -> BaseException:
    """What an operator or a TorchScript function raised, as torch's callers expect it: a RuntimeError."""
    if isinstance(error, RuntimeError):
        return error
    text = str(error) if isinstance(error, torch.jit.Error) else f"{type(error).__name__}: {error}"
    return ScriptError(text).with_traceback(error.__traceback__)


def print_traceback(error: BaseException) -> None:
    """Show on this worker what a function raised. The caller's answer never depends on it: stderr may be closed."""
    with contextlib.suppress(BaseException):  # the exception's own methods may raise anything too
        print("".join(traceback.format_exception(error)), file=sys.stderr)


def import_function(name: str) -> Callable[..., Any]:
    """The Python function module:qualified.name. Raises `UnknownFunction`."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UnknownFunction(f"there is no function {name!r} on this worker: {error}") from None
    if not callable(found):
        raise UnknownFunction(f"{name!r} is a {type(found).__name__} on this worker, not a function")
    return found  # type: ignore[no-any-return]
