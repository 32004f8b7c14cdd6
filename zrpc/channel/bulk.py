"""A channel for large buffers between two processes of one host: they are copied once, into shared memory.

One rule: a message names only memory that its sender has offered on this channel, and a piece of memory has one user at a
time: the sender while it writes, then the receiver, whose it is to read and to write until it lets go.

The sender copies a message's large frames into one of its segments; the message has the segment's number, and the
places of the frames. The receiver's tensors live in that memory, without a copy. When the last of them dies, the
receiver says so, and the sender may use the segment again. What goes over the channel's own socket, a Unix stream, are
notes of 24 bytes:

    | what u8 | 7 zero bytes | segment u64 | size u64 |

    OFFER     there is such a segment; its descriptor comes along (SCM_RIGHTS)
    RETIRE    it will not be named any more
    RELEASE   (by the receiver) nothing here uses it any more

An offer is sent before the first message that names it; who reads such a message looks for the offer when it does not have
it yet. When the channel ends, what is lent is not used again: the system frees it when its last user has gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from zrpc.channel.segments import Pool, Segment, is_sealed, map_memory
from zrpc.wire.envelope import Buffer

OFFER: Final = 1
RETIRE: Final = 2
RELEASE: Final = 3

LEAST_BYTES: Final = 256 * 1024
"""Large frames of a message, together, from which on shared memory is used."""
LEAST_FRAME: Final = 32 * 1024
"""A frame from which on it is one of the large ones."""
ALIGNMENT: Final = 64
MAX_OFFERS: Final = 4096
"""Segments that the other end may have offered at a time."""

_NOTE: Final = struct.Struct("<B7xQQ")
_ONE_FD: Final = socket.CMSG_SPACE(struct.calcsize("i"))


class Lease(np.ndarray[Any, Any]):
    """The memory of one received message. Views of it are the receiver's own: nobody else uses the memory."""

    is_given = True
    """Whoever makes tensors of such memory need not copy it."""


class Placed:
    """Where the large frames of a message are: in which segment, and at which offset each (None: in the message)."""

    __slots__ = ("number", "offsets")

    def __init__(self, number: int, offsets: list[int | None]) -> None:
        self.number = number
        self.offsets = offsets


class Bulk:
    """One end of a channel. Safe to use from any thread; `receive` is for the thread that waits for its descriptor.

    `wake` is called, perhaps by a finalizer, when `receive` must be called soon.
    """

    def __init__(self, connection: socket.socket, pool: Pool) -> None:
        connection.setblocking(False)
        self.wake: Callable[[], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_backlog: Callable[[bool], None] | None = None
        """Called with True when the socket is full, so that `receive` is called when it is not, with False after that."""
        self.is_ended = False
        self._waits = False
        self._connection = connection
        self._fd = connection.fileno()
        self._pool = pool
        self._lock = threading.Lock()
        # as a sender
        self._free: list[Segment] = []
        self._lent: dict[int, Segment] = {}
        self._notes: deque[tuple[bytes, int]] = deque()  # (note, descriptor or -1) that wait for the socket
        # as a receiver
        self._offered: dict[int, Any] = {}
        self._dead: deque[int] = deque()
        pool.join(self._give_up)

    def __repr__(self) -> str:
        return f"<Bulk lent={len(self._lent)} free={len(self._free)} offered={len(self._offered)}>"

    def fileno(self) -> int:
        return self._fd

    # ------------------------------------------------------------------------------------ sending

    def place(self, frames: Sequence[Buffer]) -> Placed | None:
        """Copy the large frames of a message, but the first, into shared memory. None when there are none, or no room."""
        total = 0
        offsets: list[int | None] = []
        for frame in frames[1:]:
            size = frame.nbytes if isinstance(frame, memoryview) else len(frame)
            if size < LEAST_FRAME:
                offsets.append(None)
            else:
                offsets.append(total)
                total += -(-size // ALIGNMENT) * ALIGNMENT
        if total < LEAST_BYTES:
            return None
        segment = self._borrow(total)
        if segment is None:
            return None
        memory = segment.memory
        for frame, offset in zip(frames[1:], offsets, strict=True):
            if offset is not None:
                data = np.frombuffer(frame, np.uint8)
                np.copyto(memory[offset : offset + data.nbytes], data)  # does not hold the interpreter lock
        return Placed(segment.number, offsets)

    def take_back(self, placed: Placed) -> None:
        """The message was not sent."""
        with self._lock:
            segment = self._lent.pop(placed.number, None)
            if segment is not None:
                self._free.append(segment)

    def _borrow(self, size: int) -> Segment | None:
        """A segment that is not in use; it is lent from now on."""
        self._read_notes()
        with self._lock:
            if self.is_ended:
                return None
            fits = [s for s in self._free if size <= s.size <= 2 * size or size <= s.size <= LEAST_BYTES * 4]
            if fits:
                segment = min(fits, key=lambda s: s.size)
                self._free.remove(segment)
                self._lent[segment.number] = segment
                return segment
        made = self._pool.make(size)
        return None if made is None else self._offer(made)

    def _offer(self, made: Segment) -> Segment | None:
        """Tell the other end of a new segment, which is lent from now on. None when it cannot be told now."""
        with self._lock:
            if self.is_ended:
                self._discard(made)
                return None
            self._lent[made.number] = made
            self._notes.append((_NOTE.pack(OFFER, made.number, made.size), made.fd))
            self._send_notes()
            if self._notes:  # the socket is full of notes
                del self._lent[made.number]
                self._free.append(made)
                return None
            made.forget_descriptor()
        return made

    def _give_up(self) -> int:
        """Give up one segment that is not used; returns its size, 0 if there is none."""
        with self._lock:
            if not self._free:
                return 0
            segment = self._free.pop(0)
            self._notes.append((_NOTE.pack(RETIRE, segment.number, segment.size), -1))
            self._send_notes()
            size = segment.size
            self._discard(segment)
            return size

    def _discard(self, segment: Segment) -> None:
        self._notes = deque(note for note in self._notes if note[1] != segment.fd)
        segment.close()
        self._pool.give_back(segment.size)

    def _send_notes(self) -> None:
        """With the lock held."""
        try:
            while self._notes:
                note, fd = self._notes[0]
                if fd < 0:
                    self._connection.send(note)
                else:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
                    self._connection.sendmsg([note], rights)
                self._notes.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._notes.clear()  # the end is seen where the notes are read
        if bool(self._notes) != self._waits:
            self._waits = not self._waits
            if self.on_backlog is not None:
                self.on_backlog(self._waits)

    # ------------------------------------------------------------------------------------ receiving

    def find(self, number: int, size: int) -> Lease:
        """The first `size` bytes of an offered segment. It counts as used until no view of them is left.

        Raises ValueError when no such memory was offered.
        """
        if number not in self._offered:
            self._read_notes()
        with self._lock:
            memory = self._offered.get(number)
            if memory is None or size > memory.nbytes:
                raise ValueError(f"segment {number} with {size} bytes was not offered")
        lease: Lease = memory[:size].view(Lease)
        weakref.finalize(lease, self._let_go, number).atexit = False
        return lease

    def _let_go(self, number: int) -> None:
        """Nothing uses the segment any more. Called by a finalizer: takes no lock."""
        self._dead.append(number)
        if self.wake is not None:
            self.wake()

    def receive(self) -> None:
        """Send what waits, and read what came. There is never a message for the caller."""
        self._send_releases()
        self._read_notes()

    def _send_releases(self) -> None:
        with self._lock:
            if self.is_ended:
                self._dead.clear()
                return
            while self._dead:
                self._notes.append((_NOTE.pack(RELEASE, self._dead.popleft(), 0), -1))
            self._send_notes()

    def _read_notes(self) -> None:
        has_ended = False
        with self._lock:
            while not self.is_ended:
                try:
                    note, rights, _, _ = self._connection.recvmsg(_NOTE.size, _ONE_FD, socket.MSG_CMSG_CLOEXEC)
                except BlockingIOError:
                    break
                except OSError:
                    note, rights = b"", []
                fds = [fd for _, kind, data in rights if kind == socket.SCM_RIGHTS for fd in _descriptors(data)]
                try:
                    self._take_note(note, fds)
                except (ValueError, OSError):
                    self._end()
                    has_ended = True
                finally:
                    for fd in fds:
                        os.close(fd)  # a mapping does not need it
        if has_ended and self.on_end is not None:
            self.on_end()

    def _take_note(self, note: bytes, fds: list[int]) -> None:
        """Raises ValueError, or OSError, when it is not in order."""
        if len(note) != _NOTE.size:
            raise ValueError("the channel has ended")
        what, number, size = _NOTE.unpack(note)
        if what == OFFER:
            if len(fds) != 1 or len(self._offered) >= MAX_OFFERS or not is_sealed(fds[0], size):
                raise ValueError("an offer without memory")
            self._offered[number] = map_memory(fds[0], size)
        elif what == RETIRE:
            self._offered.pop(number, None)
        elif what == RELEASE:
            segment = self._lent.pop(number, None)
            if segment is not None:
                self._free.append(segment)
        else:
            raise ValueError(f"a note of kind {what}")

    # ------------------------------------------------------------------------------------ ending

    def _end(self) -> None:
        """With the lock held. Tensors that live in offered memory keep it; what is lent is not used again."""
        if self.is_ended:
            return
        self.is_ended = True
        for segment in [*self._free, *self._lent.values()]:
            segment.close()
            self._pool.give_back(segment.size)
        self._free.clear()
        self._lent.clear()
        self._offered.clear()
        self._notes.clear()
        with contextlib.suppress(ValueError):
            self._pool.leave(self._give_up)

    def close(self) -> None:
        with self._lock:
            self._end()
            self._connection.close()


def _descriptors(data: bytes) -> tuple[int, ...]:
    count = len(data) // struct.calcsize("i")
    return struct.unpack(f"{count}i", data[: count * struct.calcsize("i")])
