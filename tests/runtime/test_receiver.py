"""The receiving loop: a timer that fails."""

from __future__ import annotations

import socket
import threading
from typing import Any

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


class Endless:
    """An input that always has another message."""

    def __init__(self) -> None:
        self._ends = socket.socketpair()
        self._ends[1].send(b"!")

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def receive(self) -> Any:
        return "a message"

    def close(self) -> None:
        for end in self._ends:
            end.close()


class Unannounced:
    """A timer that is due from some message on, and says nothing of it but when it is asked."""

    def __init__(self) -> None:
        self.messages = 0
        self.worked = threading.Event()

    def take(self, _message: object) -> None:
        self.messages += 1

    def next_deadline(self) -> float | None:
        return None if self.messages < 10 or self.worked.is_set() else 0.0

    def on_timer(self, now: float) -> None:
        self.worked.set()


def test_a_timer_is_not_forgotten_while_messages_come_without_a_pause() -> None:
    receiver = Receiver(spin=50e-6)
    executor = Executor(receiver.run, 1, "test")
    receiver.executor = executor
    endless, timer = Endless(), Unannounced()
    receiver.add_timer(timer)
    receiver.add(endless, timer.take)
    executor.start()
    assert timer.worked.wait(LONG)
    executor.stop(0.0)
    receiver.wake()
    assert executor.stop(LONG)
    receiver.close()
    endless.close()
