"""Calls end although the broker says nothing of their worker's death."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from zrpc.clock import monotonic
from zrpc.errors import WorkerLost
from zrpc.runtime.vigil import KEEP, LOOK, Vigil
from zrpc.testing import LocalCluster

LONG = 20.0
go_on = threading.Event()


def wait_for_it() -> bool:
    return go_on.wait(LONG)


@pytest.mark.parametrize("network", ["memory", "curve"])
def test_calls_to_a_dead_worker_end_while_the_broker_is_away(network: str) -> None:
    go_on.clear()
    try:
        with LocalCluster(["a", "b"], network) as cluster:
            pending = cluster["a"].rpc_async("b", wait_for_it)
            errors: list[BaseException] = []

            def call() -> None:
                try:
                    cluster["a"].rpc_sync("b", wait_for_it)
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=call)
            thread.start()
            assert cluster.broker is not None
            cluster.broker.stop()
            agent = cluster["a"].agent
            deadline = monotonic() + LONG
            while not agent.vigil.standing():
                assert monotonic() < deadline
                thread.join(0.01)
            cluster["b"].agent.leaving.hurry()  # its end does not wait for the functions
            cluster.kill("b")
            thread.join(LONG)
            with pytest.raises(WorkerLost, match=r"connection broke|nobody listens"):
                pending.wait()
    finally:
        go_on.set()


class FakeEnd:
    def __init__(self, address: str) -> None:
        self.address = address
        self.is_closed = False

    def monitor_fileno(self) -> int:
        return 7

    def close(self) -> None:
        self.is_closed = True


class Fakes:
    """All that a vigil needs of an agent; `waited_for` and `spoken_to` are the test's to say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waited_for: set[tuple[int, int]] = set()
        self.connected: set[tuple[int, int]] = set()
        self.has_broker = True
        self.opened: list[FakeEnd] = []
        self.handlers: list[Any] = []
        self.given_up: list[tuple[tuple[int, int], str]] = []
        fake: Any = self
        self.vigil = Vigil(
            fake,
            fake,
            fake,
            fake,
            lambda key, why: self.given_up.append((key, why)),
            lambda: self.has_broker,
            lambda: self.now,
        )

    is_self = False
    address = "tcp://there:1"

    def waits_for(self) -> set[tuple[int, int]]:
        return set(self.waited_for)

    def spoken_to(self) -> set[tuple[int, int]]:
        return set(self.connected)

    def find_life(self, key: tuple[int, int]) -> Any:
        return self

    def sentinel(self, address: str) -> FakeEnd:
        self.opened.append(FakeEnd(address))
        return self.opened[-1]

    def add(self, watch: Any, handle: Any) -> object:
        self.handlers.append(handle)
        return watch

    def remove(self, source: object) -> None:
        pass

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += LOOK
            self.vigil.on_timer(self.now)


def test_a_peer_is_watched_once_a_call_has_waited_for_a_while_and_as_long_as_one_does() -> None:
    scene = Fakes()
    scene.waited_for = {(1, 5)}
    scene.look()
    scene.waited_for = {(2, 6)}
    scene.look()
    assert scene.opened == []
    scene.look()
    assert [end.address for end in scene.opened] == ["tcp://there:1"]
    scene.handlers[0]("connected")
    assert scene.vigil.standing() == [(2, 6)]
    scene.waited_for.clear()
    scene.look(KEEP)
    assert not scene.opened[0].is_closed
    scene.look()
    assert scene.opened[0].is_closed


def test_without_the_broker_all_that_were_spoken_to_are_watched_at_once() -> None:
    scene = Fakes()
    scene.connected = {(1, 5), (2, 6)}
    scene.look(3)
    assert scene.opened == []
    scene.has_broker = False
    scene.look()
    assert len(scene.opened) == 2


def test_who_does_not_come_back_is_given_up_once() -> None:
    scene = Fakes()
    scene.waited_for = {(1, 5)}
    scene.look(2)
    scene.handlers[0]("connected")
    scene.handlers[0]("disconnected")
    due = scene.vigil.next_deadline()
    scene.look(2)
    assert due is not None
    assert due <= scene.now
    assert scene.given_up == [((1, 5), "its connection broke and did not come back")]
    assert scene.opened[0].is_closed
    scene.vigil.close()


def test_a_look_that_is_slow_is_not_joined_by_another_thread() -> None:
    """A timer that takes long loses the turn, and whoever has it next calls it too."""

    class Slow(Fakes):
        def sentinel(self, address: str) -> FakeEnd:
            end = super().sentinel(address)
            self.now += LOOK
            other = threading.Thread(target=self.vigil.on_timer, args=(self.now,))
            other.start()
            other.join(LONG)
            assert not other.is_alive()
            self.vigil.next_deadline()
            return end

    fakes = Slow()
    fakes.waited_for = {(number, 1) for number in range(4)}
    for _ in range(2):
        fakes.now += LOOK
        fakes.vigil.on_timer(fakes.now)
    assert len(fakes.opened) == 4
    fakes.vigil.close()
    assert all(end.is_closed for end in fakes.opened)
