"""What comes over connections of one host, and in pieces over ZeroMQ: records, notes of shared memory, streams.

One rule: whatever the bytes say, nothing but memory that was offered on this channel is named, and no byte of it twice.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import struct
from typing import Any, Final

import numpy as np

from zrpc.channel.bulk import OFFER, RELEASE, RETIRE, Bulk
from zrpc.channel.segments import Pool
from zrpc.transport.local import LocalLink
from zrpc.wire.limits import Limits
from zrpc.wire.records import pack_placed, pack_record
from zrpc.wire.streams import BEGIN, PIECE, Incoming, Outgoing, read_control

SEGMENT: Final = 4096
"""Bytes of each segment that is offered here."""
OFFERED: Final = (3, 4)
NOTE: Final = struct.Struct("<B7xQQ")
STREAM_LIMIT: Final = 1 << 20


class WrongAccept(AssertionError):
    """Something was taken that should not have been taken."""


# ------------------------------------------------------------------------------------------------ records


class Memory:
    """A channel on which two segments were offered; it remembers who asked for what."""

    def __init__(self) -> None:
        self.segments = {number: np.full(SEGMENT, number, np.uint8) for number in OFFERED}
        self.given: list[Any] = []

    def find(self, number: int, size: int) -> Any:
        memory = self.segments.get(number)
        if memory is None or size > SEGMENT:
            raise ValueError("it was not offered")
        self.given.append(memory)
        return memory[:size]

    def place(self, frames: Any) -> None:
        return None

    def take_back(self, placed: Any) -> None:
        pass


class Placed:
    """Where the frames of a good input are."""

    def __init__(self, number: int, offsets: list[int | None]) -> None:
        self.number = number
        self.offsets = offsets


def record_seeds() -> tuple[bytes, ...]:
    """A byte that says how it is cut, then records one after the other."""
    small, large = [b"head"], [b"head", b"x" * 100, b"", b"y" * 5000]
    plain = b"".join(b"".join(map(bytes, pack_record(frames)[0])) for frames in (small, large, small))
    frames = [b"head", b"a" * 100, b"b" * 64, b"c" * 1000]
    placed = b"".join(map(bytes, pack_placed(frames, Placed(3, [None, 0, 64]))[0]))
    return b"\x00" + plain, b"\x11" + plain, b"\x00" + placed + plain, b"\x40" + placed * 3


def span(frame: memoryview) -> tuple[int, int]:
    """The addresses of a frame's bytes."""
    start = np.frombuffer(frame, np.uint8).__array_interface__["data"][0]
    return start, start + frame.nbytes


def check_frames(messages: list[list[Any]], memory: Memory, size: int) -> None:
    """Frames are in the input's bytes, or in segments that were offered; those of one message are apart."""
    segments = [span(memoryview(segment)) for segment in memory.segments.values()]
    here = 0
    for frames in messages:
        places = sorted(span(frame) for frame in map(memoryview, frames) if frame.nbytes)
        if any(start < end for (_, end), (start, _) in itertools.pairwise(places)):
            raise WrongAccept("frames of one message in the same memory")
        shared = [p for p in places if any(low <= p[0] and p[1] <= high for low, high in segments)]
        here += sum(end - start for start, end in places) - sum(end - start for start, end in shared)
    if here > size:
        raise WrongAccept(f"{here} bytes of {size}")


def run_records(data: bytes) -> bool:
    """A stream of bytes as a local connection brings it, in pieces."""
    ours, theirs = socket.socketpair()
    link = LocalLink(ours, Limits(message_bytes=1 << 16, header_bytes=1 << 12, buffers=16))
    memory = Memory()
    link.carrier = memory
    messages: list[list[Any]] = []
    piece = 1 + (data[0] if data else 0) * 16
    rest = data[1:]
    try:
        for start in range(0, len(rest), piece if len(rest) < 100 * piece else len(rest)):
            theirs.sendall(rest[start : start + piece] if len(rest) < 100 * piece else rest)
            for _ in range(4):
                while (frames := link.take()) is not None:
                    messages.append(frames)
            if link.is_ended:
                break
    finally:
        link.close()
        theirs.close()
    check_frames(messages, memory, len(data))
    return bool(messages) and not link.is_ended


# ---------------------------------------------------------------------------------- notes of shared memory


class Descriptors:
    """What a peer may send along with a note: good memory, memory that could be taken away, and what is none."""

    def __init__(self) -> None:
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        self.good = [self._memory() for _ in range(2)]
        for fd in self.good:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        self.bad = [self._memory(), *os.pipe()]

    @staticmethod
    def _memory() -> int:
        fd = os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, SEGMENT)
        return fd

    def choose(self, number: int) -> tuple[list[int], bool]:
        """The descriptors of a note, and whether they are one good one."""
        number %= 8
        if number < 3:
            return [self.good[number % 2]], True
        if number < 6:
            return [self.bad[number - 3]], False
        return (self.good, False) if number == 6 else ([], False)


_descriptors = Descriptors()


def note_seeds() -> tuple[bytes, ...]:
    """Steps of 25 bytes: a byte that says what comes along, and a note."""

    def step(along: int, what: int, number: int, size: int = SEGMENT) -> bytes:
        return bytes([along]) + NOTE.pack(what, number, size)

    offers = step(0, OFFER, 1) + step(1, OFFER, 2)
    return (
        offers,
        offers + step(7, RETIRE, 1) + step(7, RELEASE, 9),
        step(0, OFFER, 5) + step(7, RELEASE, 5) + step(7, RETIRE, 4),
    )


def run_notes(data: bytes) -> bool:
    """Notes about shared memory, with descriptors; what may be named afterwards is what was offered and not retired."""
    ours, theirs = socket.socketpair()
    bulk = Bulk(ours, Pool(0))
    offered: set[int] = set()
    numbers = {1, 2, 5, 7}
    has_ended = False
    try:
        for start in range(0, min(len(data), 25 * 40), 25):
            step = data[start : start + 25]
            note = step[1:]
            fds, is_good = _descriptors.choose(step[0])
            if len(note) < NOTE.size:
                break
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            theirs.sendmsg([note], rights)
            bulk.receive()
            what, number, size = NOTE.unpack(note)
            numbers.add(number)
            is_in_order = what in (RETIRE, RELEASE) or (what == OFFER and is_good and size == SEGMENT)
            if bulk.is_ended:
                if is_in_order and not has_ended:
                    raise WrongAccept(f"a note in order ended the channel: {what} {number} {size}")
                has_ended = True
                offered.clear()
                break
            if not is_in_order:
                raise WrongAccept(f"a note that is none was taken: {what} {number} {size} with {fds}")
            if what == OFFER:
                offered.add(number)
            elif what == RETIRE:
                offered.discard(number)
        check_names(bulk, numbers, offered)
    finally:
        bulk.close()
        theirs.close()
    return bool(offered)


def check_names(bulk: Bulk, numbers: set[int], offered: set[int]) -> None:
    """Each of these numbers can be named if it was offered, up to its size, and not else."""
    for number in numbers:
        for size, fits in ((SEGMENT, True), (SEGMENT + 1, False)):
            try:
                found = bulk.find(number, size)
            except ValueError:
                if fits and number in offered:
                    raise WrongAccept(f"segment {number} was offered, and is not found") from None
            else:
                if number not in offered or not fits or found.nbytes != size:
                    raise WrongAccept(f"segment {number} with {size} bytes was not offered")


# ------------------------------------------------------------------------------------------------ streams


def stream_seeds() -> tuple[bytes, ...]:
    """Messages of a stream, each as its size and then its bytes: the control frame and what comes with it."""
    found = []
    for frames in ([b"head", b"x" * 3000], [b"head", b"", b"y" * 500, b"z" * 10, b""], [b"h", b"w" * 70_000]):
        outgoing = Outgoing(7, frames)
        messages = [outgoing.begin()]
        while (piece := outgoing.next_piece()) is not None:
            messages.append(piece)
        found.append(b"".join(struct.pack("<I", len(m)) + b"".join(map(_framed, m)) for m in messages))
    return tuple(found)


def _framed(frame: Any) -> bytes:
    return struct.pack("<I", len(bytes(frame))) + bytes(frame)


def _messages(data: bytes) -> list[list[bytes]]:
    found: list[list[bytes]] = []
    position = 0

    def number() -> int:
        nonlocal position
        if position + 4 > len(data):
            position = len(data)
            return 0
        position += 4
        return int.from_bytes(data[position - 4 : position], "little")

    while position < len(data) and len(found) < 50:
        frames = []
        for _ in range(min(number(), 20)):
            size = number()
            frames.append(data[position : position + size])
            position += size
        if frames:
            found.append(frames)
    return found


def run_streams(data: bytes) -> bool:
    """Messages of streams, in any order. Memory is asked for within the limit, and only what has come is given out."""
    taken = 0

    def take(size: int) -> memoryview:
        nonlocal taken
        taken += size
        return memoryview(bytearray(size))

    incoming: Incoming | None = None
    is_whole = False
    for frames in _messages(data):
        try:
            what, _, _ = read_control(frames[0])
            if what == BEGIN:
                taken = 0
                incoming = Incoming(frames, take, STREAM_LIMIT, 16)
            elif what == PIECE and incoming is not None:
                incoming.add(frames[1:])
            else:
                continue
        except ValueError:
            incoming = None
            continue
        if taken > STREAM_LIMIT:
            raise WrongAccept(f"{taken} bytes of memory")
        assert incoming is not None
        incoming.credit_due()
        if incoming.is_whole:
            is_whole = True
            size = sum(len(frame) for frame in incoming.message()[1:])
            if size != incoming.received or size > len(data):
                raise WrongAccept(f"a message of {size} bytes of which {incoming.received} have come")
            incoming = None
    return is_whole
