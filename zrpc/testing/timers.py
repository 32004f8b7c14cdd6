"""Doing something later: on a thread, or when a test says that time has passed.

One rule: what is due at the same time happens in the order in which it was asked for, one after the other.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from zrpc.clock import Clock, monotonic

logger = logging.getLogger(__name__)


class Timer(Protocol):
    """Calls actions at times; `now` and the times are seconds on one clock."""

    def now(self) -> float: ...

    def call_at(self, when: float, action: Callable[[], None]) -> None: ...

    def close(self) -> None:
        """Forget what is not done yet."""


class ManualTimer:
    """A timer for tests: time passes when `advance` says so, and actions run in the thread that calls it."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self._order = itertools.count()
        self._lock = threading.Lock()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def __repr__(self) -> str:
        return f"<ManualTimer now={self._now:g} waiting={len(self._heap)}>"

    def now(self) -> float:
        """Seconds."""
        return self._now

    def call_at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` when time has come to `when`."""
        with self._lock:
            heapq.heappush(self._heap, (when, next(self._order), action))

    def waiting(self) -> int:
        """Actions that are not done yet."""
        return len(self._heap)

    def advance(self, seconds: float) -> None:
        """Let time pass, and do what becomes due, at its time."""
        end = self._now + seconds
        while True:
            with self._lock:
                if not self._heap or self._heap[0][0] > end:
                    self._now = end
                    return
                when, _, action = heapq.heappop(self._heap)
                self._now = max(self._now, when)
            action()

    def close(self) -> None:
        """Forget what is not done yet."""
        with self._lock:
            self._heap.clear()


class ThreadTimer:
    """A timer on the real clock. Its thread lives while there is something to wait for."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<ThreadTimer waiting={len(self._heap)}>"

    def now(self) -> float:
        """Seconds on its clock."""
        return self._clock()

    def call_at(self, when: float, action: Callable[[], None]) -> None:
        """Call `action` at `when`, on the timer's thread; an exception of it is logged."""
        with self._changed:
            heapq.heappush(self._heap, (when, next(self._order), action))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zrpc-testing-timer", daemon=True)
                self._thread.start()
            else:
                self._changed.notify_all()

    def _run(self) -> None:
        while (action := self._next()) is not None:
            try:
                action()
            except Exception:  # one action must not take the others with it
                logger.exception("a delayed action failed")

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next action that is due; None when nothing is left to wait for."""
        with self._changed:
            while self._heap:
                left = self._heap[0][0] - self._clock()
                if left <= 0:
                    return heapq.heappop(self._heap)[2]
                self._changed.wait(left)
            self._thread = None
            return None

    def close(self) -> None:
        """Forget what is not done yet, and wait for the thread to end."""
        with self._changed:
            self._heap.clear()
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
