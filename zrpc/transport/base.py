"""What a transport is: five verbs, none of which blocks.

One rule: a transport moves frames and knows no meaning. `listen` and `connect` open the two ends; `send`, `receive` and
`close` use them. Waiting is done by a `Poller` on `fileno()`, by whoever has the turn to receive.

Both ends are safe to `send` on from any thread. `receive` belongs to one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from zrpc.errors import Unavailable
from zrpc.wire.envelope import Buffer

Frames = Sequence[Buffer]


class Received(NamedTuple):
    """A message that came in at a listener: `route` leads back to its sender's connection."""

    route: bytes
    frames: list[Any]


class RouteGone(Unavailable):
    """The connection that a reply was for is closed. The reply was not sent."""


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """Counters of one end since it opened."""

    messages_in: int = 0
    messages_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@runtime_checkable
class Pollable(Protocol):
    """Something with a descriptor that becomes readable when `receive` may have something.

    The descriptor is edge-like: drain `receive` until it returns None before waiting on it again.
    """

    def fileno(self) -> int: ...


class Link(Pollable, Protocol):
    """An outgoing connection to one listener. It reconnects by itself until it is closed."""

    address: str

    @property
    def is_busy(self) -> bool:
        """Whether the last `receive` returned None although there was more: a part of a message that is not whole."""

    def send(self, frames: Frames) -> bool:
        """Queue a message. True means that input may have arrived meanwhile and its edge was consumed: the receiver
        must be told to call `receive`. Raises `Unavailable` when the link is closed or its queue is full."""

    def receive(self) -> list[Any] | None:
        """The next message's frames, None when there is none now."""

    def events(self) -> list[str]:
        """What happened to the connection since the last call, oldest first: 'connected', 'disconnected',
        'refused' (nobody listens there) or 'denied' (the handshake failed)."""

    def monitor_fileno(self) -> int | None:
        """A further descriptor, readable when `events()` may have something; None when there is none."""

    def statistics(self) -> TransportStatistics: ...

    def close(self) -> None:
        """Drop the connection; what is queued is given a moment to leave."""


class Listener(Pollable, Protocol):
    """The bound end: receives from everyone who connected, and answers along routes."""

    address: str
    """The address that others connect to, with the port that was given."""

    @property
    def is_busy(self) -> bool:
        """As of a link."""

    def send(self, route: bytes, frames: Frames) -> bool:
        """Send to one peer; True as for `Link.send`. Raises `RouteGone` when its connection is closed."""

    def receive(self) -> Received | None:
        """The next message, None when there is none now."""

    def lost(self) -> list[bytes]:
        """Routes whose connection has closed since the last call (only those that have sent something)."""

    def is_broker(self, route: bytes) -> bool:
        """Whether the peer along a route has proved the broker's key (True without security). Only with `watch`."""

    def monitor_fileno(self) -> int | None:
        """A further descriptor, readable when `lost()` may have something; None when there is none."""

    def statistics(self) -> TransportStatistics: ...

    def close(self) -> None: ...


class Transport(Protocol):
    """Opens listeners and links. `role` names whose key the listening side proves: 'broker' or 'member'."""

    def listen(self, address: str, role: str, watch: bool = False) -> Listener:
        """Bind `address` ('tcp://127.0.0.1:0' chooses a port). `watch` makes `lost()` work, at the cost of a monitor.

        Raises `ConfigError` when the address cannot be bound."""

    def connect(self, address: str, role: str, watch: bool = False) -> Link:
        """A link to the listener at `address`. Returns at once; messages wait until the connection stands.

        `watch` makes `events()` work. Raises `ConfigError` for an address that makes no sense."""

    def sentinel(self, address: str) -> Link:
        """A link to the member at `address` that carries nothing and is watched: its events tell within about 2 s when
        the process there has ended, is stopped, or cannot be reached."""

    def refusals(self) -> dict[str, int]:
        """Peers that were turned away before anything of theirs was read, by reason."""

    def close(self) -> None:
        """Close everything that was opened here. No further call is allowed."""
