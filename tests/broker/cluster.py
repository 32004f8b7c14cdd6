"""What the tests of the broker share: a driver for a client, as an agent's receiver is one, and both transports."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from zrpc.broker.client import BrokerClient
from zrpc.broker.server import BrokerServer
from zrpc.clock import monotonic, time_left
from zrpc.protocol.effects import News
from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.base import Transport
from zrpc.transport.curve import Keyring
from zrpc.transport.memory import MemoryNetwork, MemoryTransport
from zrpc.transport.poller import Poller
from zrpc.transport.router import ZmqTransport
from zrpc.wire.messages import Hello

LONG = 20.0
"""A deadline that only a failure reaches."""
KEYRING = Keyring("test", bytes(range(32)))


class Driver:
    """Drives a joined client from a thread of its own and keeps its news."""

    def __init__(self, transport: Transport, address: str, name: str, nonce: int, **fields: Any) -> None:
        self.news: list[News] = []
        self._changed = threading.Condition()
        self._poller = Poller()
        self._is_over = False
        hello = Hello(name=name, nonce=nonce, address=f"memory://worker-{nonce}", **fields)
        self.client = BrokerClient(transport, address, hello, wake=self._poller.wake)
        self._thread = threading.Thread(target=self._run, name=f"driver-{name}")

    def join(self, timeout: float = LONG) -> Driver:
        self.client.join(monotonic() + timeout)
        self._poller.add(self.client.link)
        self._poller.add(self.client.watch)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._is_over:
            self._poller.wait(time_left(self.client.next_deadline(), monotonic()))
            news = self.client.on_readable(monotonic())
            with self._changed:
                self.news += news
                self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, LONG), (self.client, self.news)

    def wait_for_news(self, kind: type[Any]) -> Any:
        self.wait_for(lambda: any(isinstance(item, kind) for item in self.news))
        return next(item for item in self.news if isinstance(item, kind))

    def halt(self) -> None:
        """Stop driving, without a word to the broker."""
        self._is_over = True
        self._poller.wake()
        if self._thread.ident is not None:
            self._thread.join(LONG)

    def kill(self) -> None:
        """End as a killed process does: the connection closes, nothing is said."""
        self.halt()
        self.client.close()

    def leave(self) -> None:
        self.halt()
        self.client.leave()
        self.client.close()


class Cluster:
    """A broker and drivers, over one kind of transport."""

    def __init__(self, make_transport: Callable[[str], Transport], address: str) -> None:
        self._make_transport = make_transport
        self._nonces = itertools.count(1)
        self._transports: list[Transport] = []
        self._drivers: list[Driver] = []
        self._bind = address
        self.news: list[News] = []
        self._changed = threading.Condition()
        self.broker: BrokerServer | None = None

    def transport(self, role: str) -> Transport:
        transport = self._make_transport(role)
        self._transports.append(transport)
        return transport

    def start(self, **options: Any) -> BrokerServer:
        self.broker = BrokerServer(
            self.transport("broker"),
            self._bind,
            cluster="test",
            options=RegistryOptions(**options),
            on_event=self._note,
        )
        self.broker.start()
        self._bind = self.broker.address
        return self.broker

    def _note(self, news: News) -> None:
        with self._changed:
            self.news.append(news)
            self._changed.notify_all()

    def wait_for_news(self, kind: type[Any], count: int = 1) -> Any:
        def found() -> list[News]:
            return [item for item in self.news if isinstance(item, kind)]

        with self._changed:
            assert self._changed.wait_for(lambda: len(found()) >= count, LONG), self.news
            return found()[count - 1]

    @property
    def address(self) -> str:
        assert self.broker is not None
        return self.broker.address

    def driver(self, name: str, **fields: Any) -> Driver:
        return self.driver_at(self.address, name, **fields)

    def driver_at(self, addresses: str, name: str, **fields: Any) -> Driver:
        """A driver that knows other addresses than the broker's."""
        driver = Driver(self.transport("member"), addresses, name, next(self._nonces), **fields)
        self._drivers.append(driver)
        return driver

    def close(self) -> None:
        for driver in self._drivers:
            driver.kill()
        if self.broker is not None:
            self.broker.stop()
        for transport in self._transports:
            transport.close()


@contextlib.contextmanager
def running(kind: str, **options: Any) -> Iterator[Cluster]:
    """A broker over 'memory' or 'tcp' (encrypted); everything is closed at the end."""
    network = MemoryNetwork()
    if kind == "memory":
        cluster = Cluster(lambda role: MemoryTransport(network), "memory://broker")
    else:
        cluster = Cluster(lambda role: ZmqTransport(KEYRING, role), "tcp://127.0.0.1:0")
    try:
        cluster.start(**options)
        yield cluster
    finally:
        cluster.close()
