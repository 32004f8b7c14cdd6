"""When a call that may be repeated is tried again, and where.

One rule: a try begins only before the call's deadline, and each waits longer than the one before: by "equal jitter" (half
of a doubling delay is fixed, half is chance), so that callers which failed together do not come back together. (Brooker,
"Exponential Backoff And Jitter", 2015.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

FIRST_DELAY: Final = 0.05
"""Seconds: a restarted worker needs longer, a connection that was made anew does not."""
LAST_DELAY: Final = 2.0
"""Seconds that the doubling ends at."""

T = TypeVar("T")


class Retry:
    """One call. `chance` gives numbers from 0 to 1."""

    def __init__(self, deadline: float | None, chance: Callable[[], float]) -> None:
        self.deadline = deadline
        self.failures = 0
        self._chance = chance
        self._start = chance()
        self._failed: list[object] = []

    def __repr__(self) -> str:
        return f"<Retry failures={self.failures} deadline={self.deadline}>"

    def choose(self, candidates: Sequence[T]) -> T:
        """Where to try now: who has failed least lately, beginning anywhere, so that calls spread."""
        start = int(self._start * len(candidates)) % len(candidates)
        order = [*candidates[start:], *candidates[:start]]
        return min(order, key=lambda candidate: self._failed.index(candidate) if candidate in self._failed else -1)

    def fail(self, where: object, now: float) -> float | None:
        """A try there failed: when the next one begins, None when there is no time for one."""
        if where in self._failed:
            self._failed.remove(where)
        self._failed.append(where)
        delay = min(FIRST_DELAY * 2.0 ** min(self.failures, 30), LAST_DELAY)
        self.failures += 1
        at = now + delay * (0.5 + 0.5 * self._chance())
        return None if self.deadline is not None and at >= self.deadline else at
