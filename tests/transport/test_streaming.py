"""The streams of a socket: two of them joined by queues, which may lose what is in them."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from zrpc.errors import Unavailable
from zrpc.transport.landing import Landing
from zrpc.transport.streaming import STALL_SECONDS, Streams
from zrpc.wire.limits import Limits
from zrpc.wire.streams import BEGIN, PIECE, STOP, WINDOW_BYTES, control, read_control

ROUTE = b"route"
LARGE = WINDOW_BYTES + (5 << 20) + 3


class Side:
    """One end: what it sends is in `sent`, until it is carried."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008
        self.now = 0.0
        self.sent: deque[list[Any]] = deque()
        self.is_closed = False
        self.streams = Streams(self._put, Landing(), limits, lambda: self.now)

    def _put(self, route: bytes, frames: Any) -> None:
        assert route == ROUTE
        if self.is_closed:
            raise Unavailable("closed")
        self.sent.append([bytes(frame) for frame in frames])


def carry(one: Side, other: Side) -> list[Any]:
    """Messages that come out, when everything has been carried both ways."""
    found = []
    while one.sent or other.sent:
        for source, goal in ((one, other), (other, one)):
            while source.sent:
                message = goal.streams.take(ROUTE, source.sent.popleft())
                if message is not None:
                    found.append([bytes(frame) for frame in message])
    return found


def test_messages_of_both_sides_at_once() -> None:
    one, other = Side(), Side()
    messages = [[b"a", bytes(LARGE)], [b"b", bytes(LARGE)], [b"c", b"x", bytes(2 << 20)]]
    one.streams.send(ROUTE, messages[0])
    other.streams.send(ROUTE, messages[1])  # its stream has the same number
    one.streams.send(ROUTE, messages[2])
    assert sum(sum(map(len, frames)) for frames in one.sent) < WINDOW_BYTES + (3 << 20)
    assert one.streams.is_sending
    assert sorted(carry(one, other)) == sorted(messages)
    assert repr(one.streams) == repr(other.streams) == "<Streams out=0 in=0>"


def test_the_rest_of_a_message_whose_beginning_was_lost_is_stopped() -> None:
    one, other = Side(), Side()
    one.streams.send(ROUTE, [b"a", bytes(LARGE)])
    assert read_control(one.sent.popleft()[0])[0] == BEGIN
    assert carry(one, other) == []
    assert not one.streams.is_sending


def test_a_message_over_the_limit_is_given_to_who_can_say_so_and_stopped() -> None:
    one, other = Side(), Side(Limits(message_bytes=1 << 20))
    one.streams.send(ROUTE, [b"a", bytes(LARGE)])
    ((head, first),) = carry(one, other)
    assert read_control(head)[0] == BEGIN
    assert first == b"a"
    assert not one.streams.is_sending


def test_what_stalls_is_given_up_in_time() -> None:
    one, other = Side(), Side()
    one.streams.send(ROUTE, [b"a", bytes(LARGE)])
    for _ in range(3):
        assert other.streams.take(ROUTE, one.sent.popleft()) is None
    one.sent.clear()
    for side in (one, other):
        side.now = STALL_SECONDS + 1
    assert repr(one.streams) == "<Streams out=1 in=0>"
    assert repr(other.streams) == "<Streams out=0 in=1>"
    one.streams.send(ROUTE, [b"b", bytes(1 << 20)])
    assert carry(one, other) == [[b"b", bytes(1 << 20)]]
    assert repr(one.streams) == repr(other.streams) == "<Streams out=0 in=0>"


def test_a_piece_that_does_not_fit_ends_its_message() -> None:
    one, other = Side(), Side()
    one.streams.send(ROUTE, [b"a", bytes(LARGE)])
    other.streams.take(ROUTE, one.sent.popleft())
    bad = [control(PIECE, 1), bytes(LARGE + 1)]
    assert other.streams.take(ROUTE, bad) is bad
    assert carry(one, other) == []
    assert repr(other.streams) == "<Streams out=0 in=0>"


@pytest.mark.parametrize("frames", [[b"\xa5"], [control(9, 1)], [control(BEGIN, 1, 1)]])
def test_what_is_no_message_of_a_stream_is_returned(frames: list[bytes]) -> None:
    assert Side().streams.take(ROUTE, frames) is frames


def test_news_of_unknown_streams_and_closed_connections_do_nothing() -> None:
    one, other = Side(), Side()
    for what in (STOP, 3):
        assert one.streams.take(ROUTE, [control(what, 5)]) is None
    one.streams.send(ROUTE, [b"a", bytes(LARGE)])
    other.is_closed = True
    while one.sent:
        assert other.streams.take(ROUTE, one.sent.popleft()) is None
    one.is_closed = True
    with pytest.raises(Unavailable):
        one.streams.send(ROUTE, [b"b", bytes(LARGE)])
    assert one.streams.take(ROUTE, [control(3, 1, 4 << 20)]) is None
    assert not one.streams.is_sending
