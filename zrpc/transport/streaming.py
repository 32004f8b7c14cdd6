"""The streams of one socket: large messages that leave in pieces, and those that come in.

One rule: everything here happens under the socket's lock, and nothing waits. Pieces are put on the socket as far as there
is credit for them; the rest goes when credit comes in, which is whenever the socket is received from.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from zrpc.clock import Clock, monotonic
from zrpc.errors import Unavailable
from zrpc.transport.base import Frames
from zrpc.transport.landing import Landing
from zrpc.wire.limits import Limits
from zrpc.wire.streams import BEGIN, CREDIT, PIECE, STOP, Incoming, Outgoing, control, read_control

STALL_SECONDS: Final = 60.0
"""A stream of which nothing was heard for so long is given up: its connection was lost. Who is stopped for half of that is
declared dead."""

Key = tuple[bytes, int]
"""The route (empty for a link), and the number of the stream."""


class Streams:
    """`put` sends frames along a route; what it raises goes to whoever sends."""

    def __init__(
        self, put: Callable[[bytes, Frames], None], landing: Landing, limits: Limits, clock: Clock = monotonic
    ) -> None:
        self._put = put
        self._landing = landing
        self._limits = limits
        self._clock = clock
        self._outgoing: dict[Key, Outgoing] = {}
        self._incoming: dict[Key, Incoming] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"<Streams out={len(self._outgoing)} in={len(self._incoming)}>"

    @property
    def is_sending(self) -> bool:
        """Whether a message is not wholly on its way."""
        return bool(self._outgoing)

    def send(self, route: bytes, frames: Frames) -> None:
        """Begin to send a large message."""
        self._sweep()
        self._next = (self._next + 1) & 0xFFFFFFFF
        key = route, self._next
        stream = Outgoing(self._next, frames)
        self._put(route, stream.begin())
        self._outgoing[key] = stream
        stream.heard = self._clock()
        self._push(key, stream)

    def _push(self, key: Key, stream: Outgoing) -> None:
        try:
            while (piece := stream.next_piece()) is not None:
                self._put(key[0], piece)
        except BaseException:
            self._outgoing.pop(key, None)
            raise
        if stream.is_sent:
            self._outgoing.pop(key, None)

    def take(self, route: bytes, frames: list[Any]) -> list[Any] | None:
        """A message of a stream has come: the whole message if it was the last of it, None if there is none yet. What is
        no message of a stream is returned as it is: whoever reads it says what is wrong."""
        try:
            what, number, value = read_control(frames[0])
            with suppress(Unavailable):  # the connection is closed: nothing more comes of it
                return self._handle((route, number), what, value, frames)
        except (ValueError, MemoryError):
            return frames
        return None

    def _handle(self, key: Key, what: int, value: int, frames: list[Any]) -> list[Any] | None:
        if what in (CREDIT, STOP):
            self._continue(key, what, value)
            return None
        if what == BEGIN:
            self._sweep()
            limits = self._limits
            incoming = Incoming(frames, self._landing.take, limits.message_bytes, limits.buffers + 1)
            self._incoming[key] = incoming
        elif what == PIECE and (known := self._incoming.get(key)) is not None:
            incoming = known
            try:
                incoming.add(frames[1:])
            except ValueError:
                del self._incoming[key]
                raise
        elif what == PIECE:  # its beginning went over an earlier connection, or was refused
            self._put(key[0], [control(STOP, key[1])])
            return None
        else:
            raise ValueError("a message of a stream of an unknown kind")
        return self._go_on(key, incoming)

    def _go_on(self, key: Key, incoming: Incoming) -> list[Any] | None:
        """Give credit, or give out the message."""
        if incoming.is_whole:
            del self._incoming[key]
            return incoming.message()
        incoming.heard = self._clock()
        credit = incoming.credit_due()
        if credit is not None:
            self._put(key[0], [control(CREDIT, key[1], credit)])
        return None

    def _continue(self, key: Key, what: int, value: int) -> None:
        """The receiver of a message has taken some of it, or does not know it."""
        stream = self._outgoing.get(key)
        if stream is None:
            return
        if what == STOP:
            del self._outgoing[key]
            return
        stream.credit(value)
        stream.heard = self._clock()
        self._push(key, stream)

    def _sweep(self) -> None:
        """Give up the streams that nothing is heard of any more."""
        if self._outgoing or self._incoming:
            oldest = self._clock() - STALL_SECONDS
            self._outgoing = {key: stream for key, stream in self._outgoing.items() if stream.heard >= oldest}
            self._incoming = {key: stream for key, stream in self._incoming.items() if stream.heard >= oldest}
