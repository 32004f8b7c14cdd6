"""Timers of the testing kit: what is due happens, in order, and no thread is left."""

from __future__ import annotations

import threading

import pytest

from zrpc.clock import monotonic
from zrpc.testing.timers import ManualTimer, ThreadTimer

LONG = 20.0  # reached only by a failure


def test_a_manual_timer_does_what_is_due_at_its_time() -> None:
    timer = ManualTimer(now=10.0)
    done: list[tuple[str, float]] = []
    timer.call_at(12.0, lambda: done.append(("late", timer.now())))
    timer.call_at(11.0, lambda: timer.call_at(11.5, lambda: done.append(("nested", timer.now()))))
    timer.advance(1.9)
    assert (done, timer.now(), timer.waiting()) == ([("nested", 11.5)], 11.9, 1)
    timer.advance(0.1)
    assert done[1:] == [("late", 12.0)]
    timer.call_at(5.0, lambda: done.append(("overdue", timer.now())))
    timer.advance(0.0)
    assert done[2:] == [("overdue", 12.0)]


def test_what_is_due_together_happens_in_order() -> None:
    timer = ManualTimer()
    done: list[int] = []
    for number in range(20):
        timer.call_at(1001.0, lambda number=number: done.append(number))  # type: ignore[misc]
    timer.advance(1.0)
    assert done == list(range(20))


def test_a_thread_timer_acts_in_order_and_its_thread_ends() -> None:
    timer = ThreadTimer()
    done: list[str] = []
    over = threading.Event()
    now = monotonic()
    timer.call_at(now + 0.02, over.set)
    timer.call_at(now + 0.01, lambda: done.append("second"))
    timer.call_at(now, lambda: done.append("first"))
    thread = timer._thread
    assert over.wait(LONG)
    assert done == ["first", "second"]
    assert thread is not None
    thread.join(LONG)
    assert timer._thread is None


def test_an_action_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    timer = ThreadTimer()
    over = threading.Event()

    def fail() -> None:
        raise ValueError("planted")

    timer.call_at(monotonic(), fail)
    timer.call_at(monotonic(), over.set)
    assert over.wait(LONG)
    assert "planted" in caplog.text
    timer.close()


def test_a_closed_thread_timer_forgets() -> None:
    timer = ThreadTimer()
    done: list[int] = []
    timer.call_at(monotonic() + 3600, lambda: done.append(1))
    thread = timer._thread
    timer.close()
    assert thread is not None
    assert not thread.is_alive()
    assert done == []
