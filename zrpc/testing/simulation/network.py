"""The simulated clock and what happens at its times, and a network that delays, drops, repeats and shuffles.

One rule: everything that happens is an entry of one queue, drawn from one source of chance, so that a seed is a history.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from zrpc.testing.simulation.schedule import Schedule

MAX_DROPS = 2
"""Times that one control message is dropped: what is sent again comes through in the end."""
TRACE = 400
"""Lines of a history that are kept for a report."""


class Place:
    """Something that receives: a process. While it is frozen, what comes waits in `inbox`."""

    def __init__(self) -> None:
        self.is_over = False
        self.is_frozen = False
        self.cut_from: set[Place] = set()
        self.inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()


class Network:
    """The clock, the queue and the wires."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.random = random.Random(f"history {schedule.seed}")
        self.now = 1000.0
        self.steps = 0
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._last: dict[tuple[Place, Place], float] = {}
        self._drops: Counter[Any] = Counter()
        self._trace: deque[str] = deque(maxlen=TRACE)

    # ---------------------------------------------------------------------------------------------- time

    def at(self, delay: float, what: Callable[..., None], *args: Any) -> None:
        """Have something happen `delay` seconds from now."""
        heapq.heappush(self._queue, (self.now + delay, next(self._order), what, args))

    def step(self, until: float) -> bool:
        """The next thing that happens; False, and the clock at `until`, when nothing does before that."""
        if not self._queue or self._queue[0][0] > until:
            self.now = until
            return False
        when, _, what, args = heapq.heappop(self._queue)
        self.now = max(self.now, when)
        self.steps += 1
        what(*args)
        return True

    def note(self, what: str) -> None:
        """A line of the history."""
        self._trace.append(f"{self.now - 1000.0:9.4f}  {what}")

    def trace(self) -> list[str]:
        """The last lines of the history."""
        return list(self._trace)

    # ---------------------------------------------------------------------------------------------- wires

    def latency(self) -> float:
        """How long a message takes."""
        return self.random.random() * self.schedule.latency

    def chance(self, probability: float) -> bool:
        """Whether something of that probability happens now."""
        return probability > 0.0 and self.random.random() < probability

    def post(self, sender: Place, receiver: Place, key: Any, what: Callable[..., None], *args: Any) -> None:
        """A message between workers. `key`: what is sent again and again, and so not lost for ever; None for the rest."""
        schedule = self.schedule
        if sender is not receiver:
            if receiver in sender.cut_from:
                return
            if self.chance(schedule.drop) and (key is None or self._drops[key] < MAX_DROPS):
                if key is not None:
                    self._drops[key] += 1
                self.note(f"lost: {getattr(what, '__name__', what)} {args[:2]}")
                return
        delay = self.latency()
        if not schedule.shuffle:
            way = (sender, receiver)
            due = max(self.now + delay, self._last.get(way, 0.0))
            self._last[way] = due
            delay = due - self.now
        self.at(delay, self.arrive, sender, receiver, what, args)
        if sender is not receiver and self.chance(schedule.repeat):
            self.at(delay + self.latency() * 4, self.arrive, sender, receiver, what, args)

    def arrive(self, sender: Place, receiver: Place, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        """A message comes out of the wire."""
        if receiver.is_over or receiver in sender.cut_from:
            return
        if receiver.is_frozen:
            receiver.inbox.append((what, args))
        else:
            what(*args)

    def thaw(self, place: Place) -> None:
        """A frozen process runs on: what came meanwhile is before it."""
        place.is_frozen = False
        while place.inbox and not place.is_over:
            what, args = place.inbox.popleft()
            what(*args)
