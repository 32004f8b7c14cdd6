"""A broker that is kept alive, with fake processes that say what a broker's process says."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable

import pytest

from zrpc.errors import ConfigError
from zrpc.launch.brokerprocess import BrokerProcess
from zrpc.launch.control import Control, ProcessOrder
from zrpc.launch.processes import Program
from zrpc.launch.request import BrokerRequest

LONG = 20.0
ADDRESS = "tcp://127.0.0.1:5"


class FakeBroker:
    """A process on the other end of the wire."""

    def __init__(self, program: Program, on_exit: Callable[[int], None]) -> None:
        self.order = ProcessOrder.from_environment(program.environment)
        self.key_file = program.environment.get("ZRPC_KEY_FILE")
        self.control = Control(socket.socket(fileno=os.dup(self.order.control)))
        self.pid = 7
        self.output, self._writer = os.pipe()
        self._on_exit = on_exit
        self.is_over = False

    def print(self, text: str) -> None:
        os.write(self._writer, text.encode())

    def end(self, code: int) -> None:
        if not self.is_over:
            self.is_over = True
            self.control.close()
            os.close(self._writer)
            self._on_exit(code)

    def terminate(self) -> None: ...

    def kill(self) -> None:
        self.end(-9)

    def release(self) -> None: ...

    def close(self) -> None:
        os.close(self.output)


class Scene:
    """A spawner of fakes; `said` is what the launcher hears."""

    def __init__(self, *begins: Callable[[FakeBroker], None]) -> None:
        self._begins = list(begins)
        self.brokers: list[FakeBroker] = []
        self.said: queue.SimpleQueue[tuple[object, ...]] = queue.SimpleQueue()
        self.request = BrokerRequest(
            "c",
            "tcp://127.0.0.1:0",
            None,
            joined=lambda name: self.said.put(("joined", name)),
            stop_asked=lambda why: self.said.put(("stop", why)),
            expected=("a",),
            remark=lambda text: self.said.put((text,)),
            roles=("shard",),
            scale=lambda role, count: self.said.put(("scale", role, count)),
        )

    def spawn(self, program: Program, on_exit: Callable[[int], None]) -> FakeBroker:
        broker = FakeBroker(program, on_exit)
        self.brokers.append(broker)
        self._begins.pop(0)(broker)
        return broker

    def next(self) -> tuple[object, ...]:
        return self.said.get(timeout=LONG)


def serve(broker: FakeBroker) -> None:
    broker.control.send(ready=ADDRESS)


def test_what_it_says_is_passed_on_and_what_it_is_told_arrives() -> None:
    scene = Scene(serve)
    process = BrokerProcess(scene.request, {}, scene)
    (fake,) = scene.brokers
    assert process.address == ADDRESS
    assert (fake.order.expected, fake.order.roles, fake.order.is_successor) == (("a",), ("shard",), False)
    fake.control.send(joined="a")
    fake.control.send(scale=["shard", 3])
    fake.control.send(stop="enough")
    assert [scene.next() for _ in range(3)] == [("joined", "a"), ("scale", "shard", 3), ("stop", "enough")]
    fake.print("a warning\n")
    assert scene.next() == ("broker: a warning",)
    process.exited("a", 12, "was killed")
    lines = fake.control.lines()
    assert next(lines) == {"exited": ["a", 12, "was killed"]}
    process.stop(0.0)
    assert fake.is_over
    assert len(scene.brokers) == 1


def test_one_that_ends_is_started_again_at_its_address() -> None:
    scene = Scene(serve, serve)
    process = BrokerProcess(scene.request, {}, scene)
    scene.brokers[0].end(-9)
    assert scene.next() == ("the broker was killed by SIGKILL; it is started again, calls between workers go on",)
    assert scene.next() == (f"the broker is back at {ADDRESS}, process 7",)
    assert (scene.brokers[1].order.bind, scene.brokers[1].order.is_successor) == (ADDRESS, True)
    assert process.restarts == 1
    process.stop(0.0)


def test_one_that_cannot_serve_is_an_error_with_its_reason() -> None:
    def fail(broker: FakeBroker) -> None:
        broker.control.send(failed="bind address: in use")
        broker.end(1)

    with pytest.raises(ConfigError, match="bind address: in use"):
        BrokerProcess(Scene(fail).request, {}, Scene(fail))


def test_one_that_ends_at_once_is_an_error_with_its_last_words() -> None:
    def crash(broker: FakeBroker) -> None:
        broker.print("ImportError: no zmq\n")
        broker.end(1)

    with pytest.raises(ConfigError, match="ImportError: no zmq"):
        BrokerProcess(Scene(crash).request, {}, Scene(crash))
