"""Messages of the reference protocol, several in one envelope."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zrpc.errors import FrameError
from zrpc.ids import GloballyUniqueId
from zrpc.protocol.rref_model import Control, Message, Peer, SendAck, SendControl
from zrpc.runtime.control import BATCH, ControlPost, read_control
from zrpc.telemetry.trace import Tracer
from zrpc.wire.envelope import Envelope, Extra, Kind, unpack

ME, ONE, OTHER = Peer(0, 7), Peer(1, 8), Peer(2, 9)


class Known:
    """A peer book in which everybody is, but for those who are missing."""

    def __init__(self, *missing: Peer) -> None:
        self.missing = missing
        self.sent: list[tuple[Peer, Envelope]] = []

    def find_life(self, key: Peer) -> Any:
        if key in self.missing:
            return None
        return SimpleNamespace(send=lambda frames: self.sent.append((key, unpack(frames))))


def delete(to: Peer, seq: int) -> SendControl:
    ids = GloballyUniqueId(to.worker_id, seq), GloballyUniqueId(0, seq)
    return SendControl(to, seq, seq, Message(Control(Kind.RREF_USER_DELETE), *ids, None))


def post(book: Known, met: list[Peer] | None = None) -> ControlPost:
    strangers: list[Peer] = [] if met is None else met
    return ControlPost(book, ME, strangers.append, Tracer())  # type: ignore[arg-type]


def test_messages_to_one_worker_go_together_and_in_order() -> None:
    book = Known()
    post(book).send([delete(ONE, 1), SendAck(OTHER, 5), SendAck(ONE, 2), delete(ONE, 3)])
    said = {to: [(kind, number, tuple(ids)) for kind, number, ids in read_control(e)] for to, e in book.sent}
    assert len(book.sent) == 2
    assert [kind for kind, _, _ in said[ONE]] == [Kind.RREF_USER_DELETE, Kind.ACK, Kind.RREF_USER_DELETE]
    assert [number for _, number, _ in said[ONE]] == [0, 2, 0]
    assert said[ONE][0][2] == (1, 1, 0, 1, 1, 1, 0, 0)
    assert said[ONE][2][2] == (1, 3, 0, 3, 3, 3, 0, 0)
    assert said[OTHER] == [(Kind.ACK, 5, (0,) * 8)]


def test_a_lone_message_is_as_it_always_was() -> None:
    book = Known()
    post(book).send([delete(ONE, 1)])
    ((_, envelope),) = book.sent
    assert envelope.extra is None
    assert envelope.rref == (1, 1, 0, 1, 1, 1, 0, 0)
    assert (envelope.sender, envelope.sender_incarnation, envelope.receiver_incarnation) == (0, 7, 8)


def test_many_messages_are_several_envelopes() -> None:
    book = Known()
    post(book).send([SendAck(ONE, number) for number in range(2 * BATCH + 1)])
    found = [number for _, envelope in book.sent for _, number, _ in read_control(envelope)]
    assert found == list(range(2 * BATCH + 1))
    assert len(book.sent) == 3


def test_who_is_not_in_the_cluster_is_met() -> None:
    met: list[Peer] = []
    book = Known(ONE)
    post(book, met).send([delete(ONE, 1), delete(OTHER, 1)])
    assert met == [ONE]
    assert [to for to, _ in book.sent] == [OTHER]


GOOD = [Kind.ACK.value, 1, *(0,) * 8]


@pytest.mark.parametrize(
    "more",
    [
        7,
        [7],
        [GOOD[:-1]],
        [[*GOOD, 0]],
        [[[], *GOOD[1:]]],
        [[True, *GOOD[1:]]],
        [[Kind.CALL.value, *GOOD[1:]]],
        [[Kind.ACK.value, -1, *GOOD[2:]]],
        [[Kind.ACK.value, 1 << 64, *GOOD[2:]]],
        [[*GOOD[:-1], 1 << 63]],
        [[*GOOD[:-1], -1]],
        [[*GOOD[:-1], None]],
        [GOOD] * BATCH,
    ],
)
def test_what_is_no_message_is_refused(more: object) -> None:
    envelope = Envelope(Kind.ACK, 1, extra={Extra.MORE: more})
    with pytest.raises(FrameError, match="reference protocol"):
        list(read_control(envelope))
