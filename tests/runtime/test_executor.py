"""The executor's threads: inline runs, the turn that is taken from a long one, limits, nested waits."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from zrpc.runtime.executor import KEPT_IDLE, Executor, blocking_here

LONG = 20.0  # reached only by a failure


class Mailbox:
    """Stands for the receiver: jobs put here are run by whoever holds the turn."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._jobs: list[Callable[[], None]] = []
        self.receivers: list[str] = []
        self.executor: Executor | None = None

    def put(self, job: Callable[[], None]) -> None:
        with self._ready:
            self._jobs.append(job)
            self._ready.notify_all()

    def wake(self) -> None:
        with self._ready:
            self._ready.notify_all()

    def receive(self, turn: int) -> None:
        executor = self.executor
        assert executor is not None
        self.receivers.append(threading.current_thread().name)
        while executor.holds(turn):
            with self._ready:
                while not self._jobs:
                    if not executor.holds(turn):
                        return
                    self._ready.wait(0.05)
                job = self._jobs.pop(0)
            executor.enter()
            executor.run(job, job)
            if not executor.leave(turn):
                return


@pytest.fixture
def pool() -> Iterator[tuple[Mailbox, Executor]]:
    mailbox = Mailbox()
    executor = Executor(mailbox.receive, limit=2, name="test")
    mailbox.executor = executor
    executor.start()
    yield mailbox, executor
    mailbox.wake()
    assert executor.stop(LONG)


def test_a_short_function_runs_on_the_receiving_thread(pool: tuple[Mailbox, Executor]) -> None:
    mailbox, executor = pool
    ran: list[str] = []
    done = threading.Event()

    def job() -> None:
        ran.append(threading.current_thread().name)
        done.set()

    mailbox.put(job)
    assert done.wait(LONG)
    assert ran == mailbox.receivers
    assert executor.statistics().turns_taken == 0


def test_a_long_function_loses_the_turn_and_receiving_goes_on(pool: tuple[Mailbox, Executor]) -> None:
    mailbox, executor = pool
    release, second = threading.Event(), threading.Event()
    threads: list[str] = []

    def long() -> None:
        threads.append(threading.current_thread().name)
        assert release.wait(LONG)

    def short() -> None:
        threads.append(threading.current_thread().name)
        second.set()

    mailbox.put(long)
    mailbox.put(short)
    assert second.wait(LONG), "the message behind a long function was never handled"
    release.set()
    assert threads[0] != threads[1]
    assert executor.statistics().turns_taken >= 1


def test_no_more_than_the_limit_run_at_once(pool: tuple[Mailbox, Executor]) -> None:
    mailbox, _ = pool
    release = threading.Event()
    started = threading.Semaphore(0)
    lock = threading.Lock()
    running = most = 0

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        started.release()
        assert release.wait(LONG)
        with lock:
            running -= 1

    for _ in range(6):
        mailbox.put(lambda: job())
    assert started.acquire(timeout=LONG)
    assert started.acquire(timeout=LONG)
    assert not started.acquire(timeout=0.05), "a third one started beside two running"
    release.set()
    for _ in range(4):
        assert started.acquire(timeout=LONG)
    assert most == 2


def test_functions_that_wait_for_others_make_room_for_them(pool: tuple[Mailbox, Executor]) -> None:
    """All places taken by functions that wait for calls which need a place themselves: no deadlock."""
    mailbox, _ = pool
    finished = threading.Semaphore(0)

    def outer() -> None:
        inner_done = threading.Event()
        mailbox.put(inner_done.set)
        with blocking_here():
            assert inner_done.wait(LONG)
        finished.release()

    for _ in range(4):
        mailbox.put(lambda: outer())
    for _ in range(4):
        assert finished.acquire(timeout=LONG)


def test_a_function_known_to_be_long_goes_to_another_thread_at_once(pool: tuple[Mailbox, Executor]) -> None:
    mailbox, executor = pool
    executor._history["slow"] = 1.0
    threads: list[str] = []
    done = threading.Event()

    def job() -> None:
        threads.append(threading.current_thread().name)
        done.set()

    mailbox.put(lambda: executor.run(job, "slow"))
    assert done.wait(LONG)
    assert threads[0] != mailbox.receivers[0]


def test_a_failing_job_ends_nothing(pool: tuple[Mailbox, Executor], caplog: pytest.LogCaptureFixture) -> None:
    mailbox, _ = pool
    done = threading.Event()

    def bad() -> None:
        raise ValueError("bad job")

    mailbox.put(bad)
    mailbox.put(done.set)
    assert done.wait(LONG)
    assert "bad job" in caplog.text


def test_blocking_outside_the_pool_does_nothing() -> None:
    with blocking_here():
        pass


def test_stop_ends_all_threads() -> None:
    mailbox = Mailbox()
    executor = Executor(mailbox.receive, limit=4, name="ending")
    mailbox.executor = executor
    executor.start()
    done = threading.Event()
    executor.submit(done.set)
    assert done.wait(LONG)
    mailbox.wake()
    assert executor.stop(LONG)
    assert executor.statistics().threads == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("ending")]


def test_a_job_that_came_while_the_only_place_was_taken_inline_is_not_forgotten() -> None:
    mailbox = Mailbox()
    executor = Executor(mailbox.receive, limit=1, name="one")
    mailbox.executor = executor
    executor.start()
    submitted, done = threading.Event(), threading.Event()

    def inline() -> None:
        executor.submit(done.set)  # the place is taken: nobody is woken for it
        submitted.set()

    mailbox.put(inline)
    assert submitted.wait(LONG)
    assert done.wait(LONG), "the queued job was left lying"
    mailbox.wake()
    assert executor.stop(LONG)


def test_those_that_wait_are_not_overtaken() -> None:
    mailbox = Mailbox()
    executor = Executor(mailbox.receive, limit=1, name="fair")
    mailbox.executor = executor
    executor.start()
    release, finished = threading.Event(), threading.Event()
    order: list[int] = []

    def first() -> None:
        assert release.wait(LONG)

    mailbox.put(first)
    for number in range(20):
        mailbox.put(lambda number=number: order.append(number))  # type: ignore[misc]
    release.set()
    mailbox.put(finished.set)
    assert finished.wait(LONG)
    assert order == list(range(20))
    mailbox.wake()
    assert executor.stop(LONG)


def test_idle_threads_end_after_a_while() -> None:
    mailbox = Mailbox()
    executor = Executor(mailbox.receive, limit=40, name="test", linger=0.02)
    mailbox.executor = executor
    executor.start()
    gate = threading.Event()
    many = threading.Barrier(31)

    def wait_at_the_gate() -> None:
        many.wait(LONG)
        gate.wait(LONG)

    for _ in range(30):
        executor.submit(wait_at_the_gate)
    many.wait(LONG)
    assert executor.statistics().threads >= 30
    gate.set()
    pause = threading.Event()
    for _ in range(1000):
        if executor.statistics().threads <= 1 + KEPT_IDLE:
            break
        pause.wait(0.01)
    assert executor.statistics().threads <= 1 + KEPT_IDLE
    done = threading.Barrier(31)  # and it still does what is asked of it
    for _ in range(30):
        executor.submit(lambda: done.wait(LONG) and None)
    done.wait(LONG)
    mailbox.wake()
    assert executor.stop(LONG)


def test_no_job_is_lost_while_threads_come_and_go() -> None:
    mailbox = Mailbox()
    executor = Executor(mailbox.receive, limit=8, name="test", linger=0.0)  # each wait ends at once: the worst of it
    mailbox.executor = executor
    executor.start()
    for _ in range(200):
        ended = [threading.Event() for _ in range(8)]
        for event in ended:
            executor.submit(event.set)
        assert all(event.wait(LONG) for event in ended)
    mailbox.wake()
    assert executor.stop(LONG)
    assert executor.statistics().queued == 0


def test_an_idle_thread_holds_nothing_of_its_last_job(pool: tuple[Mailbox, Executor]) -> None:
    _, executor = pool
    thing = threading.Event()
    gone = threading.Event()
    weakref.finalize(thing, gone.set)
    executor.submit(functools.partial(id, thing))
    del thing
    assert gone.wait(LONG)
