"""The receiving loop: a timer that fails."""

from __future__ import annotations

import threading

from zrpc.clock import monotonic
from zrpc.runtime.executor import Executor
from zrpc.runtime.receiver import RETRY_TIMER, Receiver

LONG = 20.0  # reached only by a failure


class Failing:
    """A timer that is due always, and fails some times before it works."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: list[float] = []
        self.worked = threading.Event()

    def next_deadline(self) -> float | None:
        return None if self.worked.is_set() else 0.0

    def on_timer(self, now: float) -> None:
        self.calls.append(now)
        if len(self.calls) <= self.failures:
            raise OSError("no descriptor is left")
        self.worked.set()


def test_a_timer_that_fails_is_called_again_but_not_at_once() -> None:
    receiver = Receiver()
    executor = Executor(receiver.run, 1, "test")
    receiver.executor = executor
    failing, other = Failing(failures=2), Failing(failures=0)
    receiver.add_timer(failing)
    receiver.add_timer(other)
    begun = monotonic()
    executor.start()
    assert other.worked.wait(LONG)
    assert failing.worked.wait(LONG), "a failed timer must be called again"
    assert len(failing.calls) == 3
    assert monotonic() - begun >= 2 * RETRY_TIMER
    executor.stop(0.0)
    receiver.wake()
    assert executor.stop(LONG)
    receiver.close()
