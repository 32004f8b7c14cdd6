"""Which calls a worker takes on: whose names are on its list, and not more of one caller's than it may have under way.

One rule: it is decided by the header, before anything of the body is read. What a Python pickle holds cannot be known
before it runs: the list keeps out mistakes there, not who wants in. For TorchScript and operators it keeps out both.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from zrpc.errors import CallNotAllowed, TooManyCalls
from zrpc.protocol.calls import WorkerKey
from zrpc.runtime.callables import python_name

ALWAYS: Final = ("zrpc.collectives:*",)
"""What a group's common end and its gatherings call."""


class Admission:
    """The decision, for one worker. `allow`: patterns of function names, none for every function."""

    def __init__(self, worker: str, allow: Sequence[str], max_pending: int) -> None:
        self._worker = worker
        self._allow = (*allow, *ALWAYS) if allow else ()
        self._known: dict[str, bool] = {}
        self._max_pending = max_pending
        self._lock = threading.Lock()
        self._pending: dict[WorkerKey, int] = {}

    def check_name(self, function: str) -> None:
        """Raise `CallNotAllowed` for a function that is not on the list."""
        if self._allow and not self._is_allowed(function):
            raise CallNotAllowed(
                f"worker {self._worker!r} does not take calls of {function}: it is not on its list of functions (`allow`)"
            )

    def check_function(self, func: Any) -> None:
        """Raise `CallNotAllowed` when what a pickle held is another function than the header said."""
        if self._allow:
            self.check_name(python_name(func))

    def _is_allowed(self, function: str) -> bool:
        known = self._known.get(function)
        if known is None:
            known = any(fnmatchcase(function, pattern) for pattern in self._allow)
            if len(self._known) < 4096:  # the names are the callers' to choose; the memory is ours to bound
                self._known[function] = known
        return known

    def enter(self, sender: WorkerKey) -> None:
        """A call of this sender is taken on. Raises `TooManyCalls` when it has as many under way as it may."""
        with self._lock:
            count = self._pending.get(sender, 0)
            if count < self._max_pending:
                self._pending[sender] = count + 1
                return
        raise TooManyCalls(
            f"worker {self._worker!r} has {count} calls of this caller under way, as many as it takes from one "
            "(max_pending_calls): wait for some of them first"
        )

    def leave(self, sender: WorkerKey) -> None:
        """A call of this sender has ended."""
        with self._lock:
            count = self._pending.get(sender, 0)
            if count > 1:
                self._pending[sender] = count - 1
            else:
                self._pending.pop(sender, None)

    def pending(self, sender: WorkerKey) -> int:
        """Calls of this sender that are under way."""
        return self._pending.get(sender, 0)
