"""A connection to a process of this host: a Unix socket that carries the same frames as ZeroMQ does, as records.

One rule: a sender never waits and never loses a message. What the socket does not take at once is queued here, and goes
when it is writable.

Whoever sends writes to the socket itself; no thread of a library is woken for it. On a 2-core VM the two ways of an
exchange cost 10 microseconds together, where a ROUTER and a DEALER over TCP take 90. It is a stream and not packets,
because one read then takes all that has queued up (a batch costs its reader one call to the system, whoever wrote it), and
because a stream has no largest message.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from zrpc.clock import monotonic
from zrpc.transport.base import Frames, RouteGone, TransportStatistics
from zrpc.wire.limits import DEFAULT_LIMITS, Limits
from zrpc.wire.records import HEAD, Placement, pack_placed, pack_record, split_record

READ_BYTES: Final = 64 * 1024
"""One read takes at most so much. A buffer of this size comes from the allocator's own pool, not from the system."""
SOCKET_BYTES: Final = 1 << 20
"""What the system is asked to buffer in each direction."""
JOIN_BYTES: Final = 32 * 1024
"""Replies that are kept back, while more requests of the same read wait to be handled, are sent at this size."""
JOIN_SECONDS: Final = 0.0005
"""And at the first that is ready so long after another one."""
_CLOSED: Final = "the connection to a process of this host is closed"
MAX_PIECES: Final = 512
"""Pieces given to the system in one call; it takes 1024 at most."""


def _tune(connection: socket.socket) -> None:
    connection.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connection.setsockopt(socket.SOL_SOCKET, option, SOCKET_BYTES)


class Carrier(Protocol):
    """A channel for large frames beside a link."""

    def place(self, frames: Frames) -> Placement | None:
        """Put the large frames into shared memory; None when there are none, or there is no room."""

    def take_back(self, placed: Any) -> None:
        """The message was not sent."""

    def find(self, number: int, size: int) -> Any:
        """The beginning of a segment, as memory of the caller's own. Raises ValueError when it was not offered."""


class LocalLink:
    """One end of a connection. `send` is safe from any thread; `receive` belongs to one thread at a time.

    `on_backlog` is called with True when the socket is full (have `receive` called when the link is writable), and with
    False when what waited has gone. `on_end` is called once, by the receiving thread, when the other end has closed or
    sent what is no record.
    """

    is_busy = False

    def __init__(self, connection: socket.socket, limits: Limits = DEFAULT_LIMITS) -> None:
        self.address = "local"
        self.on_backlog: Callable[[bool], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.carrier: Carrier | None = None
        """Where large frames go; None: with the others."""
        self.is_ended = False
        self.backlog_bytes = 0
        """Bytes that wait for the socket to take them."""
        _tune(connection)
        self._connection = connection
        self._fd = connection.fileno()
        self._limit = limits.message_bytes + limits.header_bytes + 16 * limits.buffers
        self._lock = threading.Lock()
        self._closed = False
        self._backlog: deque[memoryview] = deque()
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._kept_since = 0.0
        # receiving: whole messages, the beginning of one that is not, and whether the last read took all there was
        self._inbox: deque[list[Any]] = deque()
        self._may_have_kept = False  # replies to what came together, which then waited in the inbox
        self._rest: bytes = b""
        self._large: bytearray | None = None
        self._filled = 0
        self._is_drained = False
        self._reading = threading.Lock()
        self._in = self._out = self._bytes_in = self._bytes_out = 0

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self.is_ended else f"backlog={self.backlog_bytes}"
        return f"<LocalLink fd={self._fd} {state}>"

    def fileno(self) -> int:
        return self._fd

    def monitor_fileno(self) -> int | None:
        return None

    def events(self) -> list[str]:
        return []

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(self._in, self._out, self._bytes_in, self._bytes_out)

    # ------------------------------------------------------------------------------------ sending

    def send(self, frames: Frames) -> bool:
        """Send a message, after what waits. Raises `RouteGone` when the other end is gone. False: no edge of the receiver's
        is ever consumed.

        A reply to one of several requests that were read together is kept back for a moment, to leave with the next ones.
        """
        if len(frames) > 1 and self.carrier is not None:
            placed = self.carrier.place(frames)
            if placed is not None:
                return self._send_placed(self.carrier, placed, frames)
        pieces, size = pack_record(frames)
        with self._lock:
            self._count(size)
            if self._inbox and size < JOIN_BYTES:
                now = monotonic()
                if not self._kept:
                    self._kept_since = now
                self._kept += pieces
                self._kept_bytes += size
                if self._kept_bytes < JOIN_BYTES and now - self._kept_since < JOIN_SECONDS:
                    return False
                pieces = []
            self._put(pieces)
        return False

    def _send_placed(self, carrier: Carrier, placed: Placement, frames: Frames) -> bool:
        pieces, size = pack_placed(frames, placed)
        try:
            with self._lock:
                self._count(size)
                self._put(pieces)
        except BaseException:
            carrier.take_back(placed)
            raise
        return False

    def keep(self, frames: Frames) -> bool:
        """Queue a small message, to be sent with others: by `flush`, by the next `send`, or here when there are many, or
        the first has waited for long.

        True when it is the first one: see that `flush` is called soon. Raises `RouteGone` when the other end is gone.
        """
        pieces, size = pack_record(frames)
        with self._lock:
            self._count(size)
            self._kept += pieces
            self._kept_bytes += size
            if self._kept_bytes == size:
                self._kept_since = monotonic()
                return True
            if self._kept_bytes >= JOIN_BYTES or monotonic() - self._kept_since >= JOIN_SECONDS:
                self._put([])
        return False

    def flush(self) -> None:
        """Send what is kept back, and as much of the backlog as the socket takes."""
        if not self._kept and not self._backlog:
            return  # whoever is about to keep something sees to it that this is called again
        with self._lock, contextlib.suppress(RouteGone):  # the receiving side sees the end by itself
            if self._closed:
                return
            if self._backlog:
                self._push_backlog()
            if self._kept:
                self._put([])

    def has_backlog(self) -> bool:
        """Whether something waits for the socket to be writable."""
        return bool(self._backlog)

    def _count(self, size: int) -> None:
        if self._closed or self.is_ended:
            raise RouteGone(_CLOSED)
        self._out += 1
        self._bytes_out += size

    def _put(self, pieces: list[Any]) -> None:
        """Write pieces, after what is kept, or queue what the socket does not take. With the lock held."""
        if self._kept:
            pieces = [b"".join(self._kept), *pieces]
            self._kept = []
            self._kept_bytes = 0
        sent = 0
        if not self._backlog:
            try:
                if len(pieces) == 1:
                    sent = self._connection.send(pieces[0])
                    if sent == len(pieces[0]):
                        return
                else:
                    sent = self._connection.sendmsg(pieces[:MAX_PIECES])
            except BlockingIOError:
                pass
            except OSError as error:
                raise RouteGone(f"{_CLOSED} ({error})") from None
        self._queue(pieces, sent)

    def _queue(self, pieces: list[Any], sent: int) -> None:
        """Put what was not sent of the pieces into the backlog."""
        backlog = self._backlog
        had_backlog = bool(backlog)
        for piece in pieces:
            size = len(piece)
            if sent >= size:
                sent -= size
                continue
            backlog.append(memoryview(piece)[sent:])
            self.backlog_bytes += size - sent
            sent = 0
        if backlog and not had_backlog and self.on_backlog is not None:
            self.on_backlog(True)

    def _push_backlog(self) -> None:
        backlog = self._backlog
        send = self._connection.send
        try:
            while backlog:
                view = backlog[0]
                sent = send(view)
                self.backlog_bytes -= sent
                if sent < view.nbytes:
                    backlog[0] = view[sent:]
                else:
                    backlog.popleft()
        except BlockingIOError:
            return
        except OSError:  # the receiving side sees the end by itself
            backlog.clear()
            self.backlog_bytes = 0
        if self.on_backlog is not None:
            self.on_backlog(False)

    # ------------------------------------------------------------------------------------ receiving

    def receive(self) -> list[Any] | None:
        """The next message's frames; None when there is none, after which the link must be readable before there is one.

        The frames are views of memory that nothing else uses.
        """
        if not self._reading.acquire(blocking=False):
            self._flush_if_needed()
            return None  # it is read by somebody else, who goes on with it
        try:
            if self._inbox:
                return self._inbox.popleft()
            if self._may_have_kept or self._backlog:
                self._flush_if_needed()
            if self._is_drained:
                self._is_drained = False
                return None
            return self._read()
        finally:
            self._reading.release()

    def _flush_if_needed(self) -> None:
        self._may_have_kept = False
        with self._lock:  # whoever kept something back did so because the inbox was not empty
            waits = bool(self._kept or self._backlog)
        if waits:
            self.flush()

    def claim(self) -> None:
        """Have `receive` find nothing from now on: the calling thread reads, with `take`."""
        self._reading.acquire()

    def unclaim(self) -> None:
        """Undo `claim`."""
        self._is_drained = False
        self._reading.release()

    def has_inbox(self) -> bool:
        """Whether messages have been read that nobody has taken."""
        return bool(self._inbox)

    def take(self) -> list[Any] | None:
        """As `receive`, for the only one who reads, and has waited already: this always looks."""
        return self._inbox.popleft() if self._inbox else self._read()

    def _read(self) -> list[Any] | None:
        """Read once, and take the messages apart: the first one; the others go into the inbox."""
        if self._closed or self.is_ended:
            return None
        try:
            if self._large is not None:
                self._read_large(self._large)
            else:
                data = self._connection.recv(READ_BYTES)
                size = len(data)
                self._is_drained = size < READ_BYTES
                self._bytes_in += size
                if not size:
                    self._end()
                elif not self._rest and size >= HEAD.size and HEAD.unpack_from(data) == (1, size - HEAD.size):
                    self._in += 1
                    return [memoryview(data)[HEAD.size :]]  # one small message, as mostly
                else:
                    self._take_apart(self._rest + data)
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._end()
        return self._inbox.popleft() if self._inbox else None

    def _read_large(self, large: bytearray) -> None:
        """Read on into the memory of a message that is larger than a read."""
        with memoryview(large) as view, view[self._filled :] as free:
            got = self._connection.recv_into(free)
        if not got:
            self._end()
            return
        self._bytes_in += got
        self._filled += got
        if self._filled == len(large):
            self._large = None
            self._accept(memoryview(large), *HEAD.unpack_from(large))

    def _accept(self, record: memoryview, count: int, size: int) -> None:
        """A record is complete. Raises ValueError when its sizes do not fit."""
        self._in += 1
        body = record[HEAD.size :]
        self._may_have_kept = True
        self._inbox.append(split_record(body, count, None if self.carrier is None else self.carrier.find))

    def _take_apart(self, data: bytes) -> None:
        """Find the records in some bytes. Raises ValueError when they are none."""
        position, end = 0, len(data)
        view = memoryview(data)
        while end - position >= HEAD.size:
            count, size = HEAD.unpack_from(data, position)
            after = position + HEAD.size + size
            if after > end:
                if size > self._limit or not count:
                    raise ValueError("a record over the limit")
                if size > READ_BYTES:
                    self._large = bytearray(HEAD.size + size)
                    self._filled = end - position
                    self._large[: self._filled] = view[position:]
                    position = end
                break
            self._accept(view[position:after], count, size)
            position = after
        self._rest = data[position:]

    def _end(self) -> None:
        if not self.is_ended:
            self.is_ended = True
            if self.on_end is not None:
                self.on_end()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            if self._kept and not self._backlog:
                with contextlib.suppress(RouteGone):
                    self._put([])
            self._closed = True
            self._backlog.clear()
            self._connection.close()
