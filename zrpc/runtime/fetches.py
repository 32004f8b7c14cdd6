"""Fetches of values that are not there yet, and until when somebody waits for each.

One rule: a fetch is answered once, or, when its time is over, not at all: whoever asked has given up then.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from zrpc.ids import RRefId
from zrpc.runtime.owned import OwnedValue
from zrpc.wire.envelope import Codec

Answer = Callable[[Any, BaseException | None, Codec], None]


class Fetch:
    """One fetch of a value of this worker."""

    __slots__ = ("_answers", "_owned", "rref_id")

    def __init__(self, rref_id: RRefId, owned: OwnedValue, answer: Answer) -> None:
        self.rref_id = rref_id
        self._owned = owned
        self._answers = [answer]

    def end(self) -> Answer | None:
        """The answer to give, to the first who asks for it. From any thread."""
        try:
            return self._answers.pop()  # one step: who sets the value holds no lock here, who gives up does
        except IndexError:
            return None

    def give_up(self) -> bool:
        """Its time is over; False if it has been answered. Under the lock of the references."""
        if self.end() is None:
            return False
        if self in self._owned.waiters:
            self._owned.waiters.remove(self)
        return True

    def __call__(self, value: Any, error: BaseException | None) -> None:
        """The value is there, or its error."""
        answer = self.end()
        if answer is not None:
            answer(value, error, self._owned.codec)


class Fetches:
    """Those that wait, by their deadlines. Used under the lock of the references."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Fetch]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, fetch: Fetch, deadline: float) -> None:
        """Give this one up at `deadline`."""
        heapq.heappush(self._heap, (deadline, next(self._numbers), fetch))

    def next_deadline(self) -> float | None:
        """When to call `take_overdue`."""
        return self._heap[0][0] if self._heap else None

    def take_overdue(self, now: float) -> Iterator[RRefId]:
        """The values whose fetches are given up now, one for each."""
        while self._heap and self._heap[0][0] <= now:
            fetch = heapq.heappop(self._heap)[2]
            if fetch.give_up():
                yield fetch.rref_id
