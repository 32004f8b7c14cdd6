"""Time, from one place: the only module of zrpc that imports `time`.

Deadlines are points on the monotonic clock in float seconds; `None` means no deadline. Protocol code never reads a
clock: it is given `now`.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""A function that returns seconds on a monotonic clock."""

monotonic: Clock = time.monotonic
monotonic_ns = time.monotonic_ns
"""The same clock, in whole nanoseconds."""
wall: Clock = time.time
wall_ns = time.time_ns


def wait_for_interpreter(times: int = 8) -> float:
    """Seconds that this thread waits, on average, for Python's lock after it has let go of it."""
    started = time.perf_counter()
    for _ in range(times):
        time.sleep(0)
    return (time.perf_counter() - started) / times


def to_ns(seconds: float) -> int:
    """A time in whole nanoseconds. A float holds it to 2 ns while the clock is below 180 days."""
    return round(seconds * 1e9)


def deadline_after(seconds: float | None, now: float) -> float | None:
    """The deadline `seconds` from `now`; `None` or 0 mean none, as a timeout of 0 does in torch's RPC."""
    return None if not seconds else now + seconds


def time_left(deadline: float | None, now: float) -> float | None:
    """Seconds until `deadline`, at least 0; `None` for none."""
    return None if deadline is None else max(0.0, deadline - now)


def earliest(*deadlines: float | None) -> float | None:
    """The first of some deadlines, `None` if there is none."""
    return min((d for d in deadlines if d is not None), default=None)
