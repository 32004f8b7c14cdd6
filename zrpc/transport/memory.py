"""The transport's fake: listeners and links inside one process, for tests and for simulated clusters.

One rule: it behaves as the ZeroMQ transport does in all that its interface promises, and delivers at once.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from typing import Any

from zrpc.errors import ConfigError, Unavailable
from zrpc.transport.base import Frames, Received, RouteGone, TransportStatistics
from zrpc.transport.poller import Waker
from zrpc.wire.envelope import Buffer


def _size(frame: Buffer) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)


class _End:
    is_busy = False  # messages come as a whole

    def __init__(self) -> None:
        self._waker = Waker()
        self._queue: deque[Any] = deque()
        self._closed = False
        self._in = self._out = self._bytes_in = self._bytes_out = 0

    def fileno(self) -> int:
        return self._waker.fileno()

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(self._in, self._out, self._bytes_in, self._bytes_out)

    def _put(self, item: Any) -> None:
        self._queue.append(item)
        self._waker.wake()

    def _take(self) -> Any:
        try:
            item = self._queue.popleft()
        except IndexError:
            self._waker.clear()
            if not self._queue:
                return None
            item = self._queue.popleft()
        self._in += 1
        self._bytes_in += sum(map(_size, item if isinstance(item, list) else item.frames))
        return item

    def _count_out(self, frames: Frames) -> list[bytes]:
        self._out += 1
        copied = [bytes(frame) for frame in frames]
        self._bytes_out += sum(map(len, copied))
        return copied


class MemoryLink(_End):
    """A link of the fake."""

    def __init__(self, network: MemoryNetwork, address: str, watch: bool) -> None:
        super().__init__()
        self.address = address
        self.route = b"%d" % next(network.routes)
        self._monitor = Waker() if watch else None
        self._network = network
        self._events: list[str] = ["connected"] if address in network.listeners else ["refused"]
        network.links.setdefault(address, set()).add(self)

    def send(self, frames: Frames) -> bool:
        if self._closed:
            raise Unavailable(f"the link to {self.address} is closed")
        listener = self._network.listeners.get(self.address)
        copied = self._count_out(frames)
        if listener is not None:
            listener._links[self.route] = self
            listener._put(Received(self.route, copied))
        return bool(self._queue)

    def receive(self) -> list[Any] | None:
        item: list[Any] | None = self._take()
        return item

    def monitor_fileno(self) -> int | None:
        return None if self._monitor is None else self._monitor.fileno()

    def _note(self, event: str) -> None:
        self._events.append(event)
        if self._monitor is not None:
            self._monitor.wake()

    def events(self) -> list[str]:
        if self._monitor is not None:
            self._monitor.clear()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._network.links[self.address].discard(self)
        listener = self._network.listeners.get(self.address)
        if listener is not None and listener._links.pop(self.route, None) is not None:
            listener._lost.append(self.route)
            listener._waker.wake()
        self._waker.close()
        if self._monitor is not None:
            self._monitor.close()


class MemoryListener(_End):
    """A listener of the fake."""

    def __init__(self, network: MemoryNetwork, address: str) -> None:
        super().__init__()
        self.address = address
        self._network = network
        self._links: dict[bytes, MemoryLink] = {}
        self._lost: list[bytes] = []

    def monitor_fileno(self) -> int | None:
        return None

    def send(self, route: bytes, frames: Frames) -> bool:
        link = self._links.get(route)
        if link is None or link._closed or self._closed:
            raise RouteGone("the peer's connection is closed")
        link._put(self._count_out(frames))
        return bool(self._queue)

    def receive(self) -> Received | None:
        item: Received | None = self._take()
        return item

    def is_broker(self, route: bytes) -> bool:
        return True

    def lost(self) -> list[bytes]:
        lost, self._lost = self._lost, []
        return lost

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._network.listeners.pop(self.address, None)
        for link in list(self._network.links.get(self.address, ())):
            link._note("disconnected")
        self._waker.close()


class MemoryNetwork:
    """The addresses of one simulated network. Give it to every `MemoryTransport` that should meet there."""

    def __init__(self) -> None:
        self.listeners: dict[str, MemoryListener] = {}
        self.links: dict[str, set[MemoryLink]] = {}
        self.routes = itertools.count(1)
        self.ports = itertools.count(1)
        self.lock = threading.Lock()


class MemoryTransport:
    """A transport on a `MemoryNetwork`; addresses are 'memory://anything', 'memory://0' chooses one."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._open: list[MemoryLink | MemoryListener] = []

    def listen(self, address: str, role: str, watch: bool = False) -> MemoryListener:
        with self._network.lock:
            if address.endswith("://0"):
                address = f"memory://{next(self._network.ports)}"
            if address in self._network.listeners:
                raise ConfigError(f"bind address {address}", ["Address already in use"])
            listener = MemoryListener(self._network, address)
            self._network.listeners[address] = listener
            for link in list(self._network.links.get(address, ())):
                link._note("connected")  # it has waited for somebody to listen here
        self._open.append(listener)
        return listener

    def connect(self, address: str, role: str, watch: bool = False) -> MemoryLink:
        link = MemoryLink(self._network, address, watch)
        self._open.append(link)
        return link

    def sentinel(self, address: str) -> MemoryLink:
        return self.connect(address, "member", watch=True)

    def refusals(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        for end in self._open:
            end.close()
        self._open.clear()
