"""Links that are read by the receiving thread, or by one that waits for a reply."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zrpc.runtime.executor import Executor
from zrpc.runtime.futures import Completer, Future
from zrpc.runtime.receiver import Receiver
from zrpc.runtime.sharedlink import MANY, SharedLink
from zrpc.transport.local import LocalLink
from zrpc.transport.poller import Ear
from zrpc.wire.envelope import Envelope, Kind, pack, unpack
from zrpc.wire.limits import DEFAULT_LIMITS

LONG = 20.0  # reached only by a failure
FOREIGN = 1000
"""Message ids from here on run code of a user's."""


class Bench:
    """A link with its other end, and the futures that messages complete, by id."""

    def __init__(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.far, self.link = LocalLink(far), LocalLink(near)
        self.receiver = Receiver()
        self.executor = Executor(self.receiver.run, 4, "test")
        self.receiver.executor = self.executor
        self.executor.at_tick = self.receiver.tick
        self.pending = 0
        self.futures: dict[int, Future[int]] = {}
        self.handled: dict[int, threading.Thread] = {}
        self.during: Callable[[int], None] = lambda _: None
        self._came = threading.Condition()
        self.shared = SharedLink(
            self.link, self.receiver, self._handle, self._is_foreign, DEFAULT_LIMITS, lambda: self.pending
        )
        self.link.on_end = self.shared.close

    def _is_foreign(self, envelope: Envelope) -> bool:
        return envelope.message_id >= FOREIGN

    def _handle(self, said: Any) -> None:
        number = (said if isinstance(said, Envelope) else unpack(said)).message_id
        self.during(number)
        with self._came:
            self.handled[number] = threading.current_thread()
            self._came.notify_all()
        if number in self.futures:
            Completer(self.futures[number])(number, None)

    def say(self, *numbers: int) -> None:
        for number in numbers:
            self.far.send(pack(Envelope(Kind.REPLY, number)))

    def expect(self, number: int) -> Future[int]:
        self.futures[number] = Future()
        return self.futures[number]

    def handler_of(self, number: int) -> threading.Thread:
        with self._came:
            assert self._came.wait_for(lambda: number in self.handled, LONG)
            return self.handled[number]

    def hear(self) -> Any:
        """What arrives at the other end."""
        pause = threading.Event()
        for _ in range(20000):
            frames = self.far.receive()
            if frames is not None:
                return frames
            pause.wait(0.001)
        raise AssertionError("nothing has arrived")

    def wait_in_thread(self, future: Future[int]) -> threading.Thread:
        """A thread that waits at the link; it has the link when this returns."""
        thread = threading.Thread(target=self.shared.wait, args=(future,))
        thread.start()
        pause = threading.Event()
        for _ in range(2000):
            if future.waiter is not None:
                return thread
            pause.wait(0.01)
        raise AssertionError("it does not wait")


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    made.executor.start()
    yield made
    made.shared.close()
    made.far.close()
    made.executor.stop(0.0)
    made.receiver.wake()
    assert made.executor.stop(LONG)
    made.receiver.close()


def test_the_receiver_reads_when_nobody_waits(bench: Bench) -> None:
    bench.say(1)
    assert bench.handler_of(1).name.startswith("test-")


def test_who_waits_reads(bench: Bench) -> None:
    future = bench.expect(2)
    thread = bench.wait_in_thread(future)
    bench.say(1, 2)
    thread.join(LONG)
    assert future.done()
    assert bench.handler_of(1) is thread
    assert bench.handler_of(2) is thread
    bench.say(3)
    assert bench.handler_of(3).name.startswith("test-"), "the link must have been given back"


def test_what_was_read_together_is_handled_before_the_link_is_given_back(bench: Bench) -> None:
    future = bench.expect(1)
    thread = bench.wait_in_thread(future)
    frames = [pack(Envelope(Kind.REPLY, number)) for number in (1, 2, 3)]
    for one in frames:
        bench.far.keep(one)
    bench.far.flush()
    thread.join(LONG)
    assert [bench.handler_of(number) for number in (1, 2, 3)] == [thread] * 3


def test_without_a_descriptor_for_it_nobody_reads_instead_of_the_receiver(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_link: LocalLink, _spin: float) -> Ear:
        raise OSError("too many open files")

    monkeypatch.setattr("zrpc.runtime.sharedlink.Ear", none_left)
    assert not bench.shared.attend()
    monkeypatch.undo()
    assert bench.shared.attend(), "the claim must have been given up"
    bench.shared.leave()
    bench.say(1)
    assert bench.handler_of(1).name.startswith("test-")


def test_one_thread_at_a_time(bench: Bench) -> None:
    first, second = bench.expect(1), bench.expect(2)
    thread = bench.wait_in_thread(first)
    bench.shared.wait(second)  # returns at once
    assert not second.done()
    assert not bench.shared.attend()
    bench.say(2, 1)
    thread.join(LONG)
    assert bench.handler_of(2) is thread


def test_code_of_users_is_left_to_the_receiver(bench: Bench) -> None:
    """It may wait for what comes later on the same link, or want a lock that the waiting thread holds."""
    later = bench.expect(5)

    def during(number: int) -> None:
        if number == FOREIGN:
            bench.say(5)
            assert bench.handler_of(5) is thread

    bench.during = during
    future = bench.expect(FOREIGN)
    thread = bench.wait_in_thread(future)
    bench.say(FOREIGN)
    thread.join(LONG)
    assert future.done()
    assert later.done()
    assert bench.handler_of(FOREIGN).name.startswith("test-")


def test_what_was_left_is_handled_though_the_link_closes(bench: Bench) -> None:
    bench.shared._left.append(Envelope(Kind.REPLY, FOREIGN))
    bench.shared.close()
    assert bench.handler_of(FOREIGN).name.startswith("test-")


def test_a_future_that_is_completed_elsewhere_ends_the_wait(bench: Bench) -> None:
    future = bench.expect(1)
    thread = bench.wait_in_thread(future)
    Completer(future)(None, RuntimeError("too late"))
    thread.join(LONG)
    assert not thread.is_alive()
    assert not bench.handled
    with pytest.raises(RuntimeError, match="too late"):
        future.value()


@pytest.mark.parametrize("who", ["peer", "owner"])
def test_the_end_of_the_link_ends_the_wait(bench: Bench, who: str) -> None:
    future = bench.expect(1)
    thread = bench.wait_in_thread(future)
    if who == "peer":
        bench.far.close()
    else:
        bench.shared.close()
    thread.join(LONG)
    assert not thread.is_alive()
    assert not bench.shared.attend()
    assert "closed" in repr(bench.shared)


def test_frames_that_are_no_message_are_left_to_the_handler(bench: Bench) -> None:
    refused: list[Any] = []
    original = bench.shared._handle

    def handle(said: Any) -> None:
        if isinstance(said, Envelope):
            original(said)
        else:
            refused.append(said)

    bench.shared._handle = handle
    future = bench.expect(1)
    thread = bench.wait_in_thread(future)
    bench.far.send([b"nonsense"])
    bench.say(1)
    thread.join(LONG)
    assert future.done()
    assert [bytes(frames[0]) for frames in refused] == [b"nonsense"]


def test_with_many_calls_under_way_the_link_rests_between_looks(bench: Bench) -> None:
    bench.pending = MANY
    bench.say(1)
    assert bench.handler_of(1).name.startswith("test-")
    for number in range(2, 50):
        bench.say(number)
        bench.handler_of(number)  # it goes on by itself, at the overseer's next tick
    future = bench.expect(100)
    thread = bench.wait_in_thread(future)
    bench.say(100)
    thread.join(LONG)
    assert future.done()
    bench.pending = 0
    bench.say(101)
    bench.handler_of(101)


def test_a_small_message_of_many_is_sent_soon(bench: Bench) -> None:
    bench.shared.send(pack(Envelope(Kind.CALL, 7)), True)
    assert unpack(bench.hear()).message_id == 7


def test_a_backlog_is_sent_by_who_waits(bench: Bench) -> None:
    """The socket takes no more while the other end does not read; what waits goes when it does."""
    large = [b"\0" * (8 << 20)]
    future = bench.expect(1)
    thread = bench.wait_in_thread(future)
    bench.shared.send(large, False)
    assert bench.link.has_backlog()
    assert len(bench.hear()[0]) == len(large[0])
    bench.say(1)
    thread.join(LONG)
    assert not bench.link.has_backlog()


def test_a_backlog_is_sent_by_the_receiver_again_afterwards(bench: Bench) -> None:
    future = bench.expect(1)
    thread = bench.wait_in_thread(future)
    bench.shared.send([b"\0" * (8 << 20)], False)
    Completer(future)(1, None)
    thread.join(LONG)
    assert bench.link.has_backlog()
    assert len(bench.hear()[0]) == 8 << 20
