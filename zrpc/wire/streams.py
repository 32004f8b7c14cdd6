"""Large messages over ZeroMQ: sent in pieces, of which only so many are under way at a time.

One rule: nothing is believed. A piece that fits no place of its message raises ValueError, and no memory is taken for bytes
before the first of them has come.

A message of the envelope's layout whose further frames have STREAM_BYTES or more is not one ZeroMQ message but many:

    BEGIN   | 0xA5 | 1 | 0 0 | stream u32 | number of further frames u64 | their sizes, u64 each |, then frame 0
    PIECE   | 0xA5 | 2 | 0 0 | stream u32 | 0 u64 |, then frames: the next bytes of the message, each of one of its frames
    CREDIT  | 0xA5 | 3 | 0 0 | stream u32 | bytes that have come so far u64 |          (from the receiver)
    STOP    | 0xA5 | 4 | 0 0 | stream u32 | 0 u64 |                                    (from the receiver: it is not known)

A sender has at most WINDOW_BYTES under way for which there was no credit. So what is queued stays bounded, other messages
on the same connection go in between, and the receiver copies one piece while the next ones are on their way. Numbers of
streams are the sender's, for each connection. Integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from zrpc.wire.envelope import Buffer

MARK: Final = 0xA5
"""The first byte of these messages; the envelope's is another one."""
BEGIN, PIECE, CREDIT, STOP = 1, 2, 3, 4
HEAD: Final = struct.Struct("<BB2xIQ")

STREAM_BYTES: Final = 1 << 20
"""From here on a message is sent in pieces: below, the further messages cost more than they save."""
PIECE_BYTES: Final = 1 << 20
"""A piece: large enough that its own cost does not count, small enough for the processor's caches."""
WINDOW_BYTES: Final = 16 << 20
"""Bytes under way: what 10 Gbit/s carry in 13 ms."""
CREDIT_BYTES: Final = 4 << 20
"""Credit is given for so many bytes at a time."""

FRAME_BYTES: Final = 2 << 20
"""No frame that is sent is larger: a header with all its limits allow, a small body and small buffers; or a piece."""

Take = Callable[[int], memoryview]
"""Gives writable memory of a size, which nothing else uses."""


def _nbytes(frame: Buffer) -> int:
    return frame.nbytes if isinstance(frame, memoryview) else len(frame)


def is_large(frames: Sequence[Buffer]) -> bool:
    """Whether a message goes in pieces."""
    return len(frames) > 1 and sum(map(_nbytes, frames)) - _nbytes(frames[0]) >= STREAM_BYTES


def control(what: int, number: int, value: int = 0) -> bytes:
    """The first frame of a message of a stream."""
    return HEAD.pack(MARK, what, number, value)


def read_control(frame: Any) -> tuple[int, int, int]:
    """What it is, of which stream, and the number with it. Raises ValueError."""
    if len(frame) < HEAD.size:
        raise ValueError("a message of a stream that is too short")
    mark, what, number, value = HEAD.unpack_from(frame)
    if mark != MARK or (what != BEGIN and len(frame) != HEAD.size):
        raise ValueError("not a message of a stream")
    return what, number, value


class Outgoing:
    """A message that is being sent. Its frames are not copied: they are views of the caller's memory."""

    def __init__(self, number: int, frames: Sequence[Buffer]) -> None:
        self._number = number
        self._first = frames[0]
        self._frames: list[memoryview] = [memoryview(frame).cast("B") for frame in frames[1:]]
        self._sizes = [view.nbytes for view in self._frames]
        self._index = self._offset = 0
        self._sent = self._credited = 0
        self.heard = 0.0
        """When its receiver was last heard of, as its owner counts time."""
        self._skip_empty()

    def __repr__(self) -> str:
        return f"<Outgoing {self._number}: {self._sent} of {sum(self._sizes)} bytes sent, {self._credited} credited>"

    @property
    def is_sent(self) -> bool:
        """Whether nothing of it is left here."""
        return self._index == len(self._frames)

    def begin(self) -> list[Buffer]:
        """The message that comes first."""
        sizes = struct.pack(f"<{len(self._sizes)}Q", *self._sizes)
        return [control(BEGIN, self._number, len(self._sizes)) + sizes, self._first]

    def credit(self, received: int) -> None:
        """The receiver has so many bytes. A number that cannot be is not believed."""
        if self._credited < received <= self._sent:
            self._credited = received

    def next_piece(self) -> list[Buffer] | None:
        """The next message, None when everything is sent, or as much as may be under way."""
        if self.is_sent or self._sent - self._credited + PIECE_BYTES > WINDOW_BYTES:
            return None
        piece: list[Buffer] = [control(PIECE, self._number)]
        room = PIECE_BYTES
        while room and not self.is_sent:
            part = self._frames[self._index][self._offset : self._offset + room]
            piece.append(part)
            room -= part.nbytes
            self._offset += part.nbytes
            self._skip_empty()
        self._sent += PIECE_BYTES - room
        return piece

    def _skip_empty(self) -> None:
        """Go to the next frame if this one is sent, and let go of it."""
        while self._index < len(self._frames) and self._offset == self._sizes[self._index]:
            self._frames[self._index] = memoryview(b"")
            self._index += 1
            self._offset = 0


class Incoming:
    """A message that is being received. Raises ValueError for a beginning that is none, or is over a limit."""

    def __init__(self, begin: Sequence[Any], take: Take, max_bytes: int, max_frames: int) -> None:
        if len(begin) != 2:
            raise ValueError("a beginning of a stream without the first frame")
        head, self._first = begin
        _, _, count = HEAD.unpack_from(head)[1:]
        if not 0 < count <= max_frames or len(head) != HEAD.size + 8 * count:
            raise ValueError(f"a message of {count} frames")
        self._sizes = struct.unpack_from(f"<{count}Q", head, HEAD.size)
        self._total: int = sum(self._sizes)
        if self._total > max_bytes:
            raise ValueError("a message over the limit")
        self._take = take
        self._frames: list[memoryview] = []
        self._filled = 0  # bytes of the last of the frames
        self.received = 0
        """Bytes that have come."""
        self._credited = 0
        self.heard = 0.0
        """When something of it last came, as its owner counts time."""
        self._open_next()

    def __repr__(self) -> str:
        return f"<Incoming: {self.received} of {self._total} bytes received>"

    def _open_next(self) -> None:
        """Go past the frames that are empty."""
        while len(self._frames) < len(self._sizes) and self._sizes[len(self._frames)] == 0:
            self._frames.append(memoryview(b""))
            self._filled = 0

    @property
    def is_whole(self) -> bool:
        """Whether all of it has come."""
        return self.received == self._total

    def message(self) -> list[Any]:
        """The frames of the message, once it is whole."""
        return [self._first, *self._frames]

    def add(self, parts: Sequence[Any]) -> None:
        """The next bytes. Raises ValueError when there is no place for them."""
        for part in parts:
            self._add(memoryview(part))

    def _add(self, part: memoryview) -> None:
        frames, sizes = self._frames, self._sizes
        if not frames or self._filled == sizes[len(frames) - 1]:
            if len(frames) == len(sizes):
                raise ValueError("a piece after the end of its message")
            frames.append(self._take(sizes[len(frames)]))
            self._filled = 0
        end = self._filled + part.nbytes
        if end > sizes[len(frames) - 1]:
            raise ValueError("a piece that reaches beyond its frame")
        frames[-1][self._filled : end] = part
        self._filled = end
        self.received += part.nbytes
        if end == sizes[len(frames) - 1]:
            self._open_next()

    def credit_due(self) -> int | None:
        """Bytes to give credit for now, if it is time to."""
        if self.is_whole or self.received - self._credited < CREDIT_BYTES:
            return None
        self._credited = self.received
        return self.received
