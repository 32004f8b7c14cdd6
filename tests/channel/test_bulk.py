"""Large buffers through shared memory: one user at a time, and nothing that was not offered."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from zrpc.channel.bulk import LEAST_BYTES, OFFER, RELEASE, RETIRE, Bulk
from zrpc.channel.segments import Pool, Segment
from zrpc.wire.records import HEAD, pack_placed, split_record

MIB = 1 << 20
LARGE = os.urandom(MIB)


@pytest.fixture
def pair() -> Iterator[tuple[Bulk, Bulk]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    a, b = Bulk(ends[0], Pool(8 * MIB)), Bulk(ends[1], Pool(8 * MIB))
    yield a, b
    a.close()
    b.close()


def cross(sender: Bulk, receiver: Bulk, frames: list[Any]) -> list[Any]:
    """Frames as they arrive."""
    placed = sender.place(frames)
    assert placed is not None
    pieces, _ = pack_placed(frames, placed)
    record = memoryview(b"".join(pieces))
    return split_record(record[HEAD.size :], HEAD.unpack_from(record)[0], receiver.find)


def test_what_arrives_is_what_was_sent(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    frames = cross(a, b, [b"head", LARGE, b"small", LARGE[: MIB // 2]])
    assert [bytes(frame) for frame in frames] == [b"head", LARGE, b"small", LARGE[: MIB // 2]]
    assert frames[1].obj.is_given
    assert not frames[1].readonly


def test_small_ones_stay_in_the_message(pair: tuple[Bulk, Bulk]) -> None:
    a, _ = pair
    assert a.place([b"head", b"x" * 1000]) is None
    assert a.place([LARGE, b"x" * 1000]) is None  # the first frame is read from the message
    assert a.place([b"head", b"x" * (LEAST_BYTES - 64)]) is None
    assert a._pool.used == 0


def test_memory_comes_back_when_its_last_user_dies(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    woken: list[bool] = []
    b.wake = lambda: woken.append(True)
    frames = cross(a, b, [b"head", LARGE, LARGE])
    tensor = np.frombuffer(frames[2], np.uint8)[5:]
    del frames
    gc.collect()
    b.receive()
    a.receive()
    assert (len(a._lent), len(a._free), woken) == (1, 0, [])
    assert bytes(tensor[:10]) == LARGE[5:15]
    del tensor
    assert woken == [True]
    b.receive()
    a.receive()
    assert (len(a._lent), len(a._free)) == (0, 1)


def test_segments_are_used_again_and_never_by_two(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    for n in range(10):
        data = bytes([n]) * MIB
        (_, frame) = cross(a, b, [b"", data])
        assert bytes(frame) == data
        del frame
        b.receive()
    assert a._pool.used == MIB
    held = [cross(a, b, [b"", bytes([n]) * MIB])[1] for n in range(8)]
    assert a.place([b"", LARGE]) is None  # the pool is used up: the message goes through the socket
    assert [frame[0] for frame in held] == list(range(8))
    assert all(bytes(frame) == bytes([n]) * MIB for n, frame in enumerate(held))
    held.pop()
    b.receive()
    assert a.place([b"", LARGE]) is not None


def test_what_the_receiver_writes_is_its_own(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    (_, first) = cross(a, b, [b"", LARGE])
    first[:4] = b"mine"
    (_, second) = cross(a, b, [b"", LARGE])
    assert bytes(second) == LARGE
    assert bytes(first[:4]) == b"mine"


def test_a_message_that_was_not_sent(pair: tuple[Bulk, Bulk]) -> None:
    a, _ = pair
    placed = a.place([b"", LARGE])
    assert placed is not None
    a.take_back(placed)
    assert (len(a._lent), len(a._free)) == (0, 1)
    again = a.place([b"", LARGE])
    assert again is not None
    assert again.number == placed.number


def test_unused_segments_are_given_up_for_others(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    for size in (1, 2, 4):
        frame = cross(a, b, [b"", b"x" * (size * MIB)])[1]
        del frame
        b.receive()
    assert len(b._offered) > 1
    held = cross(a, b, [b"", b"y" * (6 * MIB)])[1]
    assert a._pool.used <= 8 * MIB
    b.receive()
    assert len(b._offered) <= 2
    assert bytes(held[:2]) == b"yy"


@pytest.mark.parametrize(("number", "size"), [(99, 10), (1, MIB + 1), (1, 1 << 62)])
def test_only_what_was_offered_can_be_named(pair: tuple[Bulk, Bulk], number: int, size: int) -> None:
    a, b = pair
    cross(a, b, [b"", LARGE])
    with pytest.raises(ValueError, match="not offered"):
        b.find(number, size)


def test_another_channels_memory_cannot_be_named(pair: tuple[Bulk, Bulk]) -> None:
    a, _ = pair
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    c, d = Bulk(ends[0], a._pool), Bulk(ends[1], Pool(MIB))
    placed = a.place([b"", LARGE])
    assert placed is not None
    with pytest.raises(ValueError, match="not offered"):
        d.find(placed.number, 10)
    c.close()
    d.close()


def test_the_receiver_dies(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    ended: list[bool] = []
    a.on_end = lambda: ended.append(True)
    frames = cross(a, b, [b"", LARGE])
    b.close()
    a.receive()
    assert ended == [True]
    assert a._pool.used == 0
    assert a.place([b"", LARGE]) is None
    assert bytes(frames[1]) == LARGE  # what is still in use somewhere is not used again


def test_the_sender_dies(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    frames = cross(a, b, [b"", LARGE])
    a.close()
    b.receive()
    assert b.is_ended
    assert bytes(frames[1]) == LARGE
    del frames
    b.receive()
    assert a._pool.used == 0


def note(what: int, number: int = 1, size: int = MIB) -> bytes:
    return struct.pack("<B7xQQ", what, number, size)


@pytest.mark.parametrize("data", [note(OFFER), note(9), b"short"])
def test_notes_that_make_no_sense_end_the_channel(data: bytes) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    bulk = Bulk(near, Pool(MIB))
    far.send(data)
    far.close()
    bulk.receive()
    assert bulk.is_ended
    assert bulk._offered == {}
    bulk.close()


def test_notes_about_what_is_not_there_change_nothing(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    a._connection.send(note(RELEASE) + note(RETIRE, 5))
    b.receive()
    assert not b.is_ended


def test_offers_of_memory_that_can_shrink_are_refused() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    bulk = Bulk(near, Pool(MIB))
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    far.sendmsg([note(OFFER)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))])
    bulk.receive()
    assert bulk.is_ended
    os.close(fd)
    bulk.close()
    far.close()


def test_descriptors_do_not_pile_up(pair: tuple[Bulk, Bulk]) -> None:
    a, b = pair
    before = len(os.listdir("/proc/self/fd"))
    held = [cross(a, b, [b"", LARGE])[1] for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) <= before + 2 * len(held)
    a.close()
    b.close()
    assert len(os.listdir("/proc/self/fd")) <= before + len(held)
    assert isinstance(held[0].obj, np.ndarray)


def test_a_segment_that_is_refused_costs_nothing(monkeypatch: pytest.MonkeyPatch, pair: tuple[Bulk, Bulk]) -> None:
    a, _ = pair

    def no_memory(*_: Any) -> None:
        raise OSError("no memory")

    monkeypatch.setattr(Segment, "__init__", no_memory)
    assert a.place([b"", LARGE]) is None
    assert a._pool.used == 0
