"""Calls that may be repeated: made again, on the same worker or on another, until they succeed or their time is over.

One rule: only what says nothing about the function itself is tried again: its worker was lost, restarted, is leaving or
cannot be reached. What the function raised, and a call that ran out of time, is the caller's to judge.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zrpc.clock import Clock, monotonic
from zrpc.errors import BrokerUnreachable, LocalFault, RRefLost, StaleIncarnation, Unavailable, UnknownWorker
from zrpc.ids import WorkerInfo
from zrpc.protocol.retries import Retry
from zrpc.runtime.caller import Caller
from zrpc.runtime.futures import Future, complete
from zrpc.runtime.receiver import Receiver
from zrpc.runtime.scopes import current_scope
from zrpc.wire.messages import Member

RETRIED = (Unavailable, StaleIncarnation)
FINAL = (RRefLost, BrokerUnreachable)


@dataclass(frozen=True, slots=True)
class Role:
    """All workers of a role, where one of them is to run a call that may be repeated."""

    name: str


Target = str | int | WorkerInfo
Targets = Target | Role | Sequence[Target]


def one_worker(to: Any) -> Any:
    """`to`, which must be one worker, as calls that are made once need it. Raises `LocalFault`."""
    if isinstance(to, (Role, list)):
        raise LocalFault(
            "a call that runs once goes to one worker. With idempotent=True it goes to one of several, and to another one "
            "if that is lost."
        )
    return to


class _Try:
    """A call that is being made, or waits to be made again."""

    __slots__ = (
        "args",
        "current",
        "func",
        "future",
        "is_cancelled",
        "kwargs",
        "last_error",
        "owner",
        "retry",
        "to",
        "where",
    )

    def __init__(self, owner: Retrying, to: Targets, func: Any, args: Any, kwargs: Any, retry: Retry) -> None:
        self.to = to
        self.func = func
        self.owner = owner
        self.args = args
        self.kwargs = kwargs
        self.retry = retry
        self.future: Future[Any] = Future()
        self.current: Future[Any] | None = None
        self.last_error: BaseException | None = None
        self.where: Target = ""
        self.is_cancelled = False

    def cancel(self, _message_id: int) -> bool:
        """End it with the error of the last try, or the try that is under way."""
        return self.owner.cancel(self)


class Retrying:
    """Repeats calls for one agent. Safe to use from any thread. A timer of the receiver's."""

    def __init__(
        self, caller: Caller, receiver: Receiver, members: Callable[[], list[Member]], me: str, clock: Clock = monotonic
    ) -> None:
        self._caller = caller
        self._receiver = receiver
        self._members = members
        self._me = me
        self._clock = clock
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, _Try]] = []
        self._closed = ""

    def call(
        self, to: Targets, func: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, timeout: float
    ) -> Future[Any]:
        """A future of the result. Raises what a call raises before it is sent."""
        retry = Retry(self._caller.deadline_of(timeout), random.random)
        attempt = _Try(self, to, func, args, kwargs, retry)
        scope = current_scope()
        if scope is not None:
            number = id(attempt)
            scope.enroll(number, lambda: self.cancel(attempt))
            attempt.future.add_done_callback(lambda _: scope.leave(number))
        attempt.future.caller = attempt
        self._make(attempt)
        return attempt.future

    def _candidates(self, to: Targets) -> list[Target]:
        if isinstance(to, Role):
            found: list[Target] = [
                member.name for member in self._members() if member.role == to.name and member.name != self._me
            ]
            if not found:
                raise UnknownWorker(f"(any of role {to.name})", [member.name for member in self._members()])
            return found
        if isinstance(to, (str, int, WorkerInfo)):
            return [to.name if isinstance(to, WorkerInfo) else to]
        if not to:
            raise LocalFault("a call needs a worker: the list of workers is empty")
        return list(to)

    def _make(self, attempt: _Try) -> None:
        """Make the call once. Raises, the first time, what a call raises when nothing is sent."""
        is_first = attempt.retry.failures == 0
        deadline = attempt.retry.deadline
        left = 0.0 if deadline is None else max(1e-6, deadline - self._clock())
        try:
            candidates = self._candidates(attempt.to)
            attempt.where = attempt.retry.choose(candidates)
            inner = self._caller.call_async(attempt.where, attempt.func, attempt.args, attempt.kwargs, left)
        except UnknownWorker as error:
            if is_first and not isinstance(attempt.to, Role) and len(candidates) == 1:
                raise
            self._failed(attempt, error)
        except RETRIED as error:
            self._failed(attempt, error)
        except Exception as error:
            if is_first:
                raise
            complete(attempt.future, None, error)
        else:
            attempt.current = inner
            inner.add_done_callback(lambda done: self._ended(attempt, done))
            if attempt.is_cancelled:
                inner.abort()

    def _ended(self, attempt: _Try, done: Any) -> None:
        try:
            value = done.wait()
        except RETRIED as error:
            self._failed(attempt, error)
        except Exception as error:
            complete(attempt.future, None, error)
        else:
            complete(attempt.future, value, None)

    def _failed(self, attempt: _Try, error: Exception) -> None:
        """Try again later, if there is time."""
        attempt.last_error = error
        at = None
        if not isinstance(error, FINAL) and not self._closed and not attempt.is_cancelled:
            at = attempt.retry.fail(attempt.where, self._clock())
        if at is None:
            complete(attempt.future, None, error)
            return
        with self._lock:
            heapq.heappush(self._waiting, (at, next(self._order), attempt))
        self._receiver.expect(at)

    def cancel(self, attempt: _Try) -> bool:
        """End an attempt; False if it has ended."""
        attempt.is_cancelled = True
        current = attempt.current
        with self._lock:
            waits = [entry for entry in self._waiting if entry[2] is attempt]
            if waits:
                self._waiting = [entry for entry in self._waiting if entry[2] is not attempt]
                heapq.heapify(self._waiting)
        if waits:
            assert attempt.last_error is not None
            complete(attempt.future, None, attempt.last_error)
            return True
        return current is not None and current.abort()

    def next_deadline(self) -> float | None:
        """When the next call is made again."""
        with self._lock:
            return self._waiting[0][0] if self._waiting else None

    def on_timer(self, now: float) -> None:
        """Make the calls again that are due."""
        due = []
        with self._lock:
            while self._waiting and self._waiting[0][0] <= now:
                due.append(heapq.heappop(self._waiting)[2])
        for attempt in due:
            self._make(attempt)

    def close(self, why: str) -> None:
        """Make no call again: those that wait end with what they failed by."""
        self._closed = why
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, _, attempt in waiting:
            complete(attempt.future, None, attempt.last_error or Unavailable(why))
