"""Receiving: everything that can become readable, and everything that waits for a time, in one loop.

One rule: one thread at a time runs the loop (the holder of the executor's turn), and whatever it has begun to drain is
remembered, so that the next holder goes on where the turn was taken.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from zrpc.clock import Clock, monotonic
from zrpc.runtime.executor import Executor
from zrpc.transport.poller import Poller

BATCH = 64
"""Messages taken from one source before another gets its share."""

ASK_EVERY = 0.001
"""Seconds after which the timers are asked for their deadlines again, while messages come or when they have ceased. So a
timer that says nothing of a new deadline (see `Receiver.expect`) is late by that much at most."""

RETRY_TIMER = 0.1
"""Seconds before a timer that failed is called again: what it wanted to do is due still, and would be due at once."""

logger = logging.getLogger(__name__)


class Input(Protocol):
    """A transport's end, as the receiver sees it."""

    def fileno(self) -> int: ...

    def receive(self) -> Any | None: ...


class Timer(Protocol):
    """Something that wants to be called at a time."""

    def next_deadline(self) -> float | None: ...

    def on_timer(self, now: float) -> None: ...


class Source:
    """An input and what to do with its messages."""

    __slots__ = ("end", "handle", "is_open")

    def __init__(self, end: Input, handle: Callable[[Any], None]) -> None:
        self.end = end
        self.handle = handle
        self.is_open = True

    def fileno(self) -> int:
        return self.end.fileno()


class Receiver:
    """The loop. `add`, `remove`, `nudge` and `expect` may be called from any thread."""

    def __init__(self, clock: Clock = monotonic, spin: float = 0.0) -> None:
        self.spin = spin
        """Seconds for which a wait looks again and again, while waits are short."""
        self._clock = clock
        self._poller = Poller(spin)
        self._undrained: deque[Source] = deque()
        self._lagging: deque[Callable[[], None]] = deque()
        self._timers: list[Timer] = []
        self._failed: dict[Timer, float] = {}  # timers that failed, and when they may be called again
        self._wait_until: float | None = None
        self._ask_at = 0.0
        self.executor: Executor | None = None

    def add(self, end: Input, handle: Callable[[Any], None]) -> Source:
        """Receive from `end` from now on; each message goes to `handle`."""
        source = Source(end, handle)
        self._poller.add(source)
        self.nudge(source)
        return source

    def remove(self, source: Source) -> None:
        """Receive no more. Call it before the end is closed."""
        source.is_open = False
        self._poller.remove(source)

    def pause(self, source: Source) -> None:
        """Do not receive from it until `resume`: another thread does. What this one is about to receive, it still does."""
        self._poller.remove(source)

    def resume(self, source: Source) -> None:
        """Undo `pause`. What was read meanwhile and not handled is not noticed by itself: `nudge`."""
        self._poller.resume(source)

    def watch_writing(self, source: Source, wanted: bool) -> None:
        """Whether the source is also drained when its end takes output: its `receive` sends what waits."""
        self._poller.watch_writing(source, wanted)

    def add_timer(self, timer: Timer) -> None:
        self._timers.append(timer)
        self._poller.wake()

    def nudge(self, source: Source) -> None:
        """There may be input that the poller will not report: a send on the same socket consumed the edge."""
        self._undrained.append(source)
        self._poller.wake()

    def at_next_tick(self, action: Callable[[], None]) -> None:
        """Have something short done at the overseer's next tick."""
        executor = self.executor
        self._lagging.append(action)
        if executor is None or not executor.stir():
            self.tick()

    def hand_over(self, handle: Callable[[Any], None], message: Any) -> None:
        """Have a message handled by a thread of the pool."""
        if self.executor is not None:
            self.executor.submit(lambda: handle(message))

    def tick(self) -> None:
        """Do what was left for now. From any thread."""
        for _ in range(len(self._lagging)):
            with contextlib.suppress(IndexError):  # another thread was faster
                self._lagging.popleft()()

    def expect(self, deadline: float | None) -> None:
        """A timer has a new deadline: see that the loop does not sleep past it."""
        until = self._wait_until
        if deadline is not None and (until is None or deadline < until):
            self._wait_until = deadline  # if it has passed when the loop wakes, it comes before what was received
            self._poller.wake()

    def wake(self) -> None:
        self._poller.wake()

    def close(self) -> None:
        self._poller.close()

    def run(self, turn: int) -> None:
        """Receive until the turn is taken or the executor stops."""
        executor = self.executor
        assert executor is not None
        undrained, poller = self._undrained, self._poller
        self._ask_at = 0.0
        while executor.holds(turn):
            ready = poller.wait(0.0) if undrained else poller.look()
            now = self._clock()
            is_idle = not ready and not undrained
            if now >= self._ask_at:
                timeout = self._time_to_wait(now)
                self._ask_at = now + ASK_EVERY
            elif is_idle:
                until = self._wait_until
                timeout = max(0.0, (self._ask_at if until is None or until > self._ask_at else until) - now)
            if is_idle:
                ready = poller.wait(timeout)
                now = self._clock()
                if ready:
                    self._ask_at = now + ASK_EVERY  # what has come is handled first
            undrained += ready  # type: ignore[arg-type]
            due = self._wait_until
            if due is not None and due <= now and not self._fire(executor, turn):
                return
            for _ in range(len(undrained)):
                if not self._drain(executor, turn, undrained):
                    return

    def _drain(self, executor: Executor, turn: int, undrained: deque[Source]) -> bool:
        """Handle a batch from the first undrained source; False when the turn is gone."""
        source = undrained[0]
        if not source.is_open:
            undrained.popleft()
            return True
        receive, handle = source.end.receive, source.handle
        for _ in range(BATCH):
            message = receive()
            if message is None:
                if getattr(source.end, "is_busy", False):
                    break  # a large message is coming in: others first, then more of it
                undrained.popleft()
                return True
            executor.enter()
            try:
                handle(message)
            except Exception:  # no message may end the loop; what can be answered has been
                logger.exception("a message could not be handled")
            message = None  # large buffers go now, not when the next message comes
            if not executor.leave(turn):
                return False  # the source stays undrained: the next holder goes on with it
        undrained.rotate(-1)
        return True

    def _time_to_wait(self, now: float) -> float | None:
        """Ask the timers, which takes as long as a short call does."""
        self._wait_until = None  # whoever has a new deadline from here on wakes the poller
        self._wait_until = deadline = self._first_deadline()
        return None if deadline is None else max(0.0, deadline - now)

    def _first_deadline(self) -> float | None:
        first: float | None = None
        for timer in self._timers:
            deadline = self._deadline_of(timer) if self._failed else timer.next_deadline()
            if deadline is not None and (first is None or deadline < first):
                first = deadline
        return first

    def _deadline_of(self, timer: Timer) -> float | None:
        deadline = timer.next_deadline()
        if deadline is None or not self._failed:
            return deadline
        return max(deadline, self._failed.get(timer, deadline))

    def _fire(self, executor: Executor, turn: int) -> bool:
        """Call the timers that are due; False when the turn is gone."""
        now = self._clock()
        for timer in self._timers:
            deadline = self._deadline_of(timer)
            if deadline is not None and deadline <= now:
                executor.enter()
                try:
                    timer.on_timer(now)
                except Exception:
                    logger.exception("a timer failed")
                    self._failed[timer] = self._clock() + RETRY_TIMER
                else:
                    if self._failed:
                        self._failed.pop(timer, None)
                if not executor.leave(turn):
                    return False
        self._ask_at = 0.0
        return True
