"""Calls that have been made and have not ended.

One rule: whoever takes a call out of here completes it; it is taken out once.
"""

from __future__ import annotations

import threading
from typing import Any

from zrpc.clock import Clock, time_left
from zrpc.errors import CallTimeout, LocalFault, Overloaded, WorkerLost
from zrpc.protocol.calls import CallTable, WorkerKey
from zrpc.runtime.callables import Target
from zrpc.runtime.executor import blocking_here
from zrpc.runtime.futures import Future, complete
from zrpc.runtime.peers import Peer
from zrpc.runtime.profiling import Completion, ProfiledCall
from zrpc.runtime.threadstate import ThreadState, capture
from zrpc.runtime.values import forks_of
from zrpc.wire.envelope import Envelope

RRefNumbers = tuple[int, ...]
"""The eight ids of the header's rref field."""
MANY = 4
"""Calls under way from which on further ones are sent together: a lone call, or a few, leave at once."""
MAX_TIMEOUT = 1e9
"""Seconds, 31 years: more than that does not fit all clocks and fields that a deadline passes through."""


class PendingCall:
    """A call that waits for its reply. `done` is called with that; a future is completed, in the state (grad mode and so
    on) of the thread that makes the call."""

    __slots__ = (
        "deadline",
        "done",
        "envelope",
        "future",
        "message_id",
        "peer",
        "profiled",
        "state",
        "target",
        "timeout",
    )

    def __init__(
        self,
        message_id: int,
        peer: Peer,
        target: Target,
        envelope: Envelope,
        deadline: float | None,
        timeout: float,
        done: Completion | Future[Any],
        profiled: ProfiledCall | None = None,
    ) -> None:
        self.message_id = message_id
        self.peer = peer
        self.target = target
        self.envelope = envelope
        self.deadline = deadline
        self.timeout = timeout
        self.profiled = profiled
        self.done: Completion | None = None
        self.future: Future[Any] | None = None
        self.state: ThreadState | None = None
        if isinstance(done, Future):
            self.future, self.state = done, capture()
        else:
            self.done = done

    def end(self, value: Any, error: BaseException | None) -> None:
        """Give whoever waits the result, or the error."""
        if self.done is not None:
            self.done(value, error)
        elif self.future is not None:
            if self.state is None:
                complete(self.future, value, error)
            else:
                with self.state:
                    complete(self.future, value, error)


def check_timeout(timeout: float) -> float:
    """`timeout` if it is one: seconds, 0 for none, -1 for the default. Raises `LocalFault` otherwise."""
    is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not is_number or not (timeout == -1 or 0 <= timeout <= MAX_TIMEOUT):
        raise LocalFault(
            f"timeout is seconds as a number (at most {MAX_TIMEOUT:g}), 0 for none or -1 for the default, not {timeout!r}"
        )
    return timeout


class PendingCalls:
    """The table of `protocol.calls`, for threads.

    `limit` bounds the bytes of calls to one worker, and twice that those of all: who would make more waits, or fails
    (`fails_when_full`).
    """

    def __init__(self, clock: Clock, limit: int = 1 << 62, fails_when_full: bool = False) -> None:
        self._limit = limit
        self._fails_when_full = fails_when_full
        self._held_back = self._waiting = 0
        self._clock = clock
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._table: CallTable[PendingCall] = CallTable()
        self._cancelled: dict[int, PendingCall] = {}  # with references in them that their replies will settle
        self._is_closed = False

    def begin(self, call: PendingCall, size: int = 0, is_held_back: bool = False) -> bool:
        """A call of `size` bytes is about to be sent; returns whether it is one of many.

        Raises `WorkerLost` after a shutdown. If it `is_held_back`, it waits first while too many bytes are under way,
        and may raise `Overloaded` or `CallTimeout`.
        """
        # The bytes of all are not fewer than those to one worker: with room for these, nobody needs to look further.
        if is_held_back and self._table.pending_bytes + size > self._limit and not self._has_room(call, size):
            self._wait_for_room(call, size)
        with self._lock:
            if self._is_closed:
                raise WorkerLost(call.peer.info.name, "this worker has shut down", "calling it")
            is_one_of_many = len(self._table) >= MANY
            self._table.begin(call.message_id, call.peer.key, call, call.deadline, size)
            return is_one_of_many

    def _has_room(self, call: PendingCall, size: int) -> bool:
        return self._table.has_room(call.peer.key, size, self._limit, 2 * self._limit)

    def _wait_for_room(self, call: PendingCall, size: int) -> None:
        peer = call.peer
        if self._fails_when_full:
            raise Overloaded(peer.info.name, size, self._limit)
        with blocking_here(), self._lock:
            self._held_back += 1
            try:
                while not self._has_room(call, size):
                    left = time_left(call.deadline, self._clock())
                    if left == 0.0:
                        raise CallTimeout(peer.info.name, call.target.name, call.timeout)
                    if self._is_closed or peer.lost is not None:
                        return  # sending it says so
                    self._idle.wait(left)
            finally:
                self._held_back -= 1

    def held_back(self) -> int:
        """Callers that wait for room."""
        return self._held_back

    def pending_bytes(self) -> int:
        """Bytes of all calls that are counted."""
        return self._table.pending_bytes

    def get(self, message_id: int) -> PendingCall | None:
        """A call, which stays."""
        with self._lock:
            return self._table.get(message_id)

    def finish(self, message_id: int) -> PendingCall | None:
        """Take a call out; None if that was done before."""
        with self._lock:
            call = self._table.finish(message_id)
            if self._waiting or self._held_back:
                self._idle.notify_all()
            return call

    def cancel(self, message_id: int) -> PendingCall | None:
        """As `finish`; if there are references in the call, they are settled by its reply (see `settle`)."""
        with self._lock:
            call = self._table.finish(message_id)
            if call is not None and forks_of(call.envelope):
                self._cancelled[message_id] = call
            self._idle.notify_all()
            return call

    def settle(self, message_id: int) -> PendingCall | None:
        """A cancelled call with references in it, whose reply has come."""
        return self._cancelled.pop(message_id, None)

    def expire(self, now: float) -> list[PendingCall]:
        """Take out the calls whose deadlines have passed."""
        with self._lock:
            late = self._table.expire(now)
            self._idle.notify_all()
            return late

    def lose(self, peer: Peer) -> list[PendingCall]:
        """Take out the calls to a peer."""
        with self._lock:
            lost = self._table.lose(peer.key)
            for message_id in [number for number, call in self._cancelled.items() if call.peer is peer]:
                del self._cancelled[message_id]
            self._idle.notify_all()
            return lost

    def close(self) -> list[PendingCall]:
        """Take out all calls, and take no more."""
        with self._lock:
            self._is_closed = True
            self._idle.notify_all()
            return self._table.drain()

    def workers(self) -> set[WorkerKey]:
        """The workers whose replies are awaited."""
        with self._lock:
            return self._table.workers()

    def next_deadline(self) -> float | None:
        """The first deadline of a call."""
        with self._lock:
            return self._table.next_deadline()

    def wait_idle(self, deadline: float | None) -> bool:
        """Wait until there is no call; False at the deadline."""
        with self._lock:
            while len(self._table):
                left = time_left(deadline, self._clock())
                if left == 0.0:
                    return False
                self._waiting += 1
                try:
                    self._idle.wait(left)
                finally:
                    self._waiting -= 1
        return True

    def __len__(self) -> int:
        return len(self._table)
