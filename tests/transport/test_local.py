"""Local connections: what goes in comes out whole and in order, and nothing is read from strangers."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from zrpc.transport import local
from zrpc.transport.base import RouteGone
from zrpc.transport.local import LocalLink
from zrpc.transport.poller import Ear
from zrpc.wire.limits import Limits

LONG = 20.0  # reached only by a failure
LIMITS = Limits(message_bytes=64 << 20)


@pytest.fixture
def pair() -> Iterator[tuple[LocalLink, LocalLink]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
    a, b = LocalLink(ends[0], LIMITS), LocalLink(ends[1], LIMITS)
    yield a, b
    a.close()
    b.close()


def take(link: LocalLink, count: int = 1) -> list[list[bytes]]:
    """The next messages. Waits as long as it takes."""
    ear = Ear(link)
    found: list[list[bytes]] = []
    try:
        while len(found) < count:
            frames = link.receive()
            if frames is not None:
                found.append([bytes(frame) for frame in frames])
            elif link.is_ended or not ear.wait(LONG):
                raise AssertionError(f"{len(found)} of {count} came")
    finally:
        ear.close()
    return found


def test_frames_arrive_as_they_were(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    sent = [[b"one"], [b""], [b"head", bytearray(b"x" * 70_000), memoryview(b"tail")], [b"", b"", b"y"]]
    for frames in sent:
        assert a.send(frames) is False
    assert take(b, len(sent)) == [[bytes(frame) for frame in frames] for frames in sent]
    assert b.receive() is None
    assert a.statistics().messages_out == b.statistics().messages_in == len(sent)
    assert a.statistics().bytes_out == b.statistics().bytes_in


def test_frames_of_any_item_size(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    numbers = memoryview(struct.pack("4d", 1, 2, 3, 4)).cast("d")
    a.send([b"head", numbers])
    assert take(b) == [[b"head", bytes(numbers)]]


def test_any_sizes_in_order(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    chance = random.Random(1)
    sizes = [chance.choice((0, 1, 100, local.READ_BYTES - 13, local.READ_BYTES, 200_000)) for _ in range(200)]
    sent = [[bytes([n % 251]) * size] * (1 + n % 3) for n, size in enumerate(sizes)]

    def send() -> None:
        for frames in sent:
            a.send(frames)
        ear = Ear(a)
        ear.watch_writing(True)
        while a.has_backlog():
            ear.wait(LONG)
            a.flush()
        ear.close()

    thread = threading.Thread(target=send)
    thread.start()
    received = take(b, len(sent))
    thread.join(LONG)
    assert received == sent


def test_a_full_socket_keeps_nobody_waiting(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    told: list[bool] = []
    a.on_backlog = told.append
    sent = [[b"%d" % n, b"z" * 300_000] for n in range(20)]
    for frames in sent:
        a.send(frames)  # nobody reads: a send that waited would wait for ever
    assert told == [True]
    assert a.backlog_bytes > 1 << 20
    received = []
    while len(received) < len(sent):
        frames = b.receive()
        if frames is not None:
            received.append([bytes(frame) for frame in frames])
        a.flush()
    assert received == sent
    assert told == [True, False]
    assert (a.backlog_bytes, a.has_backlog()) == (0, False)


def test_kept_messages_leave_together(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    assert a.keep([b"one"]) is True
    assert a.keep([b"two"]) is False
    b.receive()
    assert b.receive() is None  # nothing has left
    a.flush()
    assert take(b, 2) == [[b"one"], [b"two"]]
    assert a.keep([b"three"]) is True
    a.send([b"four"])
    assert take(b, 2) == [[b"three"], [b"four"]]


def test_many_kept_messages_leave_by_themselves(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    firsts = [a.keep([b"x" * 1000]) for _ in range(100)]
    batch = -(-local.JOIN_BYTES // 1012)
    assert [n for n, is_first in enumerate(firsts) if is_first] == list(range(0, 100, batch))
    assert take(b, 100 // batch * batch) == [[b"x" * 1000]] * (100 // batch * batch)


def test_answers_to_what_was_read_together_leave_together(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    for _ in range(3):
        a.keep([b"request"])
    a.flush()
    assert b.receive() is not None
    b.send([b"1"])
    assert a.receive() is None
    assert b.receive() is not None
    assert b.receive() is not None
    b.send([b"2"])  # no more of them wait
    assert take(a, 2) == [[b"1"], [b"2"]]


def test_what_was_kept_back_leaves_when_the_last_is_not_answered_at_once(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    for _ in range(2):
        a.keep([b"request"])
    a.flush()
    b.receive()
    b.send([b"1"])
    b.receive()
    assert b.receive() is None
    assert take(a) == [[b"1"]]


def test_the_end_is_told_once_and_sends_fail(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    ends: list[bool] = []
    b.on_end = lambda: ends.append(True)
    a.send([b"last"])
    a.close()
    assert take(b) == [[b"last"]]
    for _ in range(4):
        assert b.receive() is None
    assert ends == [True]
    with pytest.raises(RouteGone):
        b.send([b"late"])
    with pytest.raises(RouteGone):
        a.send([b"late"])


def test_a_sender_learns_that_nobody_is_there(pair: tuple[LocalLink, LocalLink]) -> None:
    a, b = pair
    b.close()
    with pytest.raises(RouteGone):
        a.send([b"lost"])


@pytest.mark.parametrize(
    "record",
    [
        struct.pack("<IQ", 0, 10),  # no frame
        struct.pack("<IQ", 1, 1 << 40),  # over the limit
        struct.pack("<IQ", 5, 8) + bytes(8),  # no room for the sizes
        struct.pack("<IQQ", 2, 9, 200) + b"x",  # a frame larger than the record
        struct.pack("<IQ", 0, 0),
    ],
)
def test_what_is_no_record_ends_the_connection(record: bytes) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    near.setblocking(False)
    link = LocalLink(near, LIMITS)
    far.sendall(record)
    assert link.receive() is None
    assert link.is_ended
    link.close()
    far.close()


def test_random_bytes_never_raise() -> None:
    chance = random.Random(2)
    for _ in range(200):
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        near.setblocking(False)
        link = LocalLink(near, Limits(message_bytes=1 << 16))
        data = chance.randbytes(chance.randrange(1, 200))
        far.sendall(data if chance.random() < 0.5 else struct.pack("<IQ", chance.randrange(4), len(data)) + data)
        far.close()
        for _ in range(10):
            link.receive()
        assert link.is_ended
        link.close()
