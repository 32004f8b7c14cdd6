"""Calls under way, on the caller's side: which reply belongs to which call, and which call is late.

One rule: a call ends once. Whoever takes its record out of the table (the reply, the deadline, the loss of the worker, a
cancellation) completes it; everyone who comes later finds nothing and does nothing.

    created --begin--> pending --finish(reply | error)--> ended
                          |------expire(deadline)-------> ended
                          |------lose(worker)-----------> ended
                          '------finish(cancel)---------> ended

It also counts the bytes of what is pending, for each worker and in all: whoever makes calls faster than they are answered
is held back by `has_room`.

The table holds no lock and reads no clock: its driver gives it one owner at a time, and tells it `now`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

WorkerKey = tuple[int, int]
"""(worker id, incarnation): one life of one worker."""


@dataclass(frozen=True)
class CallStatistics:
    """Calls pending now, and ended so far by how they ended."""

    pending: int
    begun: int
    finished: int
    expired: int
    lost: int


class CallTable(Generic[T]):
    """Pending calls by message id; `T` is whatever the driver needs to complete one."""

    def __init__(self) -> None:
        self._pending: dict[int, T] = {}
        # Apart, as a tuple of numbers alone: the garbage collector soon leaves that out, and thousands may be pending.
        self._about: dict[int, tuple[WorkerKey, int]] = {}
        self._bytes_of: dict[WorkerKey, int] = {}
        self.pending_bytes = 0
        """Sizes of all pending calls together."""
        self._deadlines: list[tuple[float, int]] = []
        self._begun = self._finished = self._expired = self._lost = 0

    def __len__(self) -> int:
        return len(self._pending)

    def __repr__(self) -> str:
        return f"<CallTable pending={len(self._pending)} next={self.next_deadline()}>"

    def begin(self, message_id: int, worker: WorkerKey, call: T, deadline: float | None, size: int = 0) -> None:
        """A call of `size` bytes is about to be sent. Its message id must be new."""
        if message_id in self._pending:
            raise ValueError(f"message id {message_id} is pending already")
        self._pending[message_id] = call
        self._about[message_id] = (worker, size)
        if size:
            self._bytes_of[worker] = self._bytes_of.get(worker, 0) + size
            self.pending_bytes += size
        self._begun += 1
        if deadline is not None:
            heapq.heappush(self._deadlines, (deadline, message_id))

    def has_room(self, worker: WorkerKey, size: int, limit: int, total: int) -> bool:
        """Whether a call of `size` bytes leaves what is pending within `limit` for the worker and `total` for all.

        One call always may be pending, however large it is.
        """
        of_worker = self._bytes_of.get(worker, 0)
        return (not of_worker or of_worker + size <= limit) and (
            not self.pending_bytes or self.pending_bytes + size <= total
        )

    def _take(self, message_id: int) -> T | None:
        found = self._pending.pop(message_id, None)
        if found is None:
            return None
        worker, size = self._about.pop(message_id)
        if size:
            self.pending_bytes -= size
            left = self._bytes_of[worker] - size
            if left:
                self._bytes_of[worker] = left
            else:
                del self._bytes_of[worker]
        return found

    def get(self, message_id: int) -> T | None:
        """The pending call of that id; it stays pending."""
        return self._pending.get(message_id)

    def finish(self, message_id: int) -> T | None:
        """Take a call out, to complete it. None when it has ended already (a late or repeated reply)."""
        found = self._take(message_id)
        if found is None:
            return None
        self._finished += 1
        if len(self._deadlines) > 64 and len(self._deadlines) > 4 * len(self._pending):
            self._forget_ended_deadlines()
        return found

    def expire(self, now: float) -> list[T]:
        """Take out the calls whose deadline has passed, earliest first."""
        late: list[T] = []
        heap = self._deadlines
        while heap and heap[0][0] <= now:
            found = self._take(heapq.heappop(heap)[1])
            if found is not None:
                late.append(found)
        self._expired += len(late)
        return late

    def lose(self, worker: WorkerKey) -> list[T]:
        """Take out the calls that wait for a worker that is gone, oldest first."""
        ids = [message_id for message_id, (key, _) in self._about.items() if key == worker]
        self._lost += len(ids)
        return [taken for taken in map(self._take, ids) if taken is not None]

    def drain(self) -> list[T]:
        """Take all out: the agent closes."""
        calls = list(self._pending.values())
        self._lost += len(calls)
        self._pending.clear()
        self._about.clear()
        self._bytes_of.clear()
        self.pending_bytes = 0
        self._deadlines.clear()
        return calls

    def workers(self) -> set[WorkerKey]:
        """The workers that calls wait for."""
        return {key for key, _ in self._about.values()}

    def next_deadline(self) -> float | None:
        """When `expire` must be called next."""
        heap = self._deadlines
        while heap and heap[0][1] not in self._pending:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def _forget_ended_deadlines(self) -> None:
        """Keep the heap in proportion: calls that end early leave their deadlines behind."""
        self._deadlines = [entry for entry in self._deadlines if entry[1] in self._pending]
        heapq.heapify(self._deadlines)

    def statistics(self) -> CallStatistics:
        return CallStatistics(len(self._pending), self._begun, self._finished, self._expired, self._lost)
