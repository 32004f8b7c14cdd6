"""What the function of a call has to mind: until when it may run, and whether it is wanted any more.

One rule: cancelling goes down. Whatever a function waits for is enrolled in its scope, and is ended with it.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, Final

from zrpc.errors import Cancelled
from zrpc.runtime.context import running


class Scope:
    """A call that is being served, as its function sees it. Safe to use from any thread."""

    __slots__ = ("_nested", "deadline", "is_cancelled")

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.is_cancelled = False
        self._nested: dict[int, Callable[[], object]] | None = None

    @property
    def trace(self) -> bytes | None:
        """The place in a trace of calls that the function makes; None when it is not traced."""
        return None

    def check(self) -> None:
        """Raise `Cancelled` if the call was cancelled."""
        if self.is_cancelled:
            raise Cancelled("the call that this function runs for was cancelled")

    def enroll(self, number: int, end: Callable[[], object]) -> None:
        """Have `end` called when this is cancelled: at once if it is already. `number` is for `leave`."""
        nested = self._nested
        if nested is None:
            nested = self._nested = {}
        nested[number] = end
        if self.is_cancelled:  # in between: one of the two sees the other's write
            nested.pop(number, None)
            end()

    def leave(self, number: int) -> None:
        """What was enrolled has ended by itself."""
        if self._nested is not None:
            self._nested.pop(number, None)

    def left_by(self, number: int, done: Callable[[Any, BaseException | None], None]) -> Callable[..., None]:
        """`done`, and before it `leave`."""

        def leave_too(value: Any, error: BaseException | None) -> None:
            self.leave(number)
            done(value, error)

        return leave_too

    def cancel(self) -> None:
        """The function is not wanted any more: end what it waits for, and let its next check raise."""
        self.is_cancelled = True
        nested = self._nested
        while nested:
            try:
                _, end = nested.popitem()
            except KeyError:  # the last one has ended by itself
                break
            end()


ON_LOOP: Final = Scope(None)
"""In `running.scope` of a thread that runs an event loop: there each task has a scope of its own."""
loop_scope: Final[contextvars.ContextVar[Scope | None]] = contextvars.ContextVar("zrpc_scope", default=None)
"""The call that a task of an event loop runs for."""


def current_scope() -> Scope | None:
    """The call whose function runs here, None outside of one."""
    scope = running.scope
    return loop_scope.get() if scope is ON_LOOP else scope


def trace_place() -> bytes | None:
    """The place in a trace of the call whose function runs here; None outside of one, or when it is not traced."""
    scope = running.scope
    if scope is ON_LOOP:
        scope = loop_scope.get()
    return None if scope is None else scope.trace


def check_cancelled() -> None:
    """Raise `Cancelled` if the call that this function runs for was cancelled.

    For long Python functions, between their steps. Every zrpc call and wait inside a function checks by itself. Does
    nothing outside of a call.
    """
    scope = current_scope()
    if scope is not None:
        scope.check()
