"""A member's connections to its brokers, as one thing to wait for: to one in charge, and to a standby when that is needed.

One rule: it adds to each message and each event the address that it came from, and nothing else. `open`, `shut` and `send`
may be called from any thread; `receive` belongs to one at a time.
"""

from __future__ import annotations

import contextlib
import selectors
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from zrpc.errors import ConfigError, Unavailable
from zrpc.transport.base import Frames, Link, Transport


def split_addresses(text: str) -> tuple[str, ...]:
    """The addresses in a text that separates them with commas, each once. Raises `ConfigError` when there is none."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ConfigError("the broker's address", ["expected tcp://HOST:PORT, or several of them with commas between"])
    return found


class Lines:
    """Links to the brokers at some addresses. Its descriptor is readable when `receive` may have something."""

    def __init__(self, transport: Transport, addresses: Iterable[str]) -> None:
        self._transport = transport
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._messages = selectors.DefaultSelector()
        self._changes = selectors.DefaultSelector()
        self.watch = Changes(self)
        self._is_closed = False
        try:
            for address in addresses:
                self.open(address)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait on for messages."""
        return self._messages.fileno()

    def changes_fileno(self) -> int:
        """The descriptor to wait on for events of the connections."""
        return self._changes.fileno()

    def addresses(self) -> list[str]:
        """Where there are connections to."""
        return list(self._links)

    def open(self, address: str) -> None:
        """Connect. Raises `ConfigError` for an address that makes no sense."""
        with self._lock:
            if self._is_closed or address in self._links:
                return
            link = self._links[address] = self._transport.connect(address, "broker", watch=True)
            self._messages.register(link.fileno(), selectors.EVENT_READ)
            monitor = link.monitor_fileno()
            if monitor is not None:
                self._changes.register(monitor, selectors.EVENT_READ)

    def shut(self, address: str) -> None:
        """Drop a connection; what was said is given a moment to leave."""
        with self._lock:
            link = self._links.pop(address, None)
            if link is not None:
                self._drop(link)

    def _drop(self, link: Link) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._messages.unregister(link.fileno())
        monitor = link.monitor_fileno()
        if monitor is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._changes.unregister(monitor)
        link.close()

    def send(self, address: str, frames: Frames) -> bool:
        """As `Link.send`. Raises `Unavailable` when there is no connection to that address."""
        link = self._links.get(address)
        if link is None:
            raise Unavailable(f"there is no link to {address}")
        return link.send(frames)

    def receive(self) -> tuple[str, Any] | None:
        """The next message and where it came from, None when there is none now."""
        for address, link in list(self._links.items()):
            frames = link.receive()
            if frames is not None:
                return address, frames
        return None

    @property
    def is_busy(self) -> bool:
        """As of a link: whether the last `receive` returned None although there was more."""
        return any(link.is_busy for link in list(self._links.values()))

    def events(self) -> list[tuple[str, str]]:
        """What happened to the connections since the last call, each with its address."""
        return [(address, what) for address, link in list(self._links.items()) for what in link.events()]

    def close(self) -> None:
        """Drop all connections."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            for link in self._links.values():
                self._drop(link)
            self._links.clear()
            self._messages.close()
            self._changes.close()


class Changes:
    """The events of the connections, as an input: `receive` returns one, or None when there is none now."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._events: deque[tuple[str, str]] = deque()

    def fileno(self) -> int:
        return self._lines.changes_fileno()

    def receive(self) -> tuple[str, str] | None:
        if not self._events:
            self._events.extend(self._lines.events())
        return self._events.popleft() if self._events else None
