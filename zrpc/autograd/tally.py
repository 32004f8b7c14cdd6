"""What has become of the parts of something that was spread over workers: counted until all of them have answered.

One rule: `done` is called once, by whoever reports last; the first error is the one that counts.

(This is how Dijkstra and Scholten detect the end of a diffusing computation: every message is answered when all that
it has set off is.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

Report = Callable[[int, frozenset[int], BaseException | None], None]
"""(change of the number of open items, workers that had open items or were visited, error)"""


class Tally:
    """Waits for parts. It holds one part itself, until `close`."""

    def __init__(self, done: Report) -> None:
        self._done = done
        self._lock = threading.Lock()
        self._left = 1
        self._change = 0
        self._workers: set[int] = set()
        self._error: BaseException | None = None

    def expect(self) -> None:
        """One more part will report."""
        with self._lock:
            self._left += 1

    def note(self, change: int = 0, workers: Iterable[int] = (), error: BaseException | None = None) -> None:
        """Something is known already, and more will come."""
        with self._lock:
            self._change += change
            self._workers.update(workers)
            self._error = self._error or error

    def report(self, change: int, workers: Iterable[int], error: BaseException | None) -> None:
        """A part has ended."""
        self.note(change, workers, error)
        with self._lock:
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self._done(self._change, frozenset(self._workers), self._error)

    def close(self) -> None:
        """No more parts will be expected."""
        self.report(0, (), None)
