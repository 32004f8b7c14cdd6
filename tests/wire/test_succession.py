from __future__ import annotations

import msgpack
import pytest

from zrpc.errors import FrameError, JoinRefused
from zrpc.wire.envelope import unpack
from zrpc.wire.messages import Message, Refusal, Stop, read, seal
from zrpc.wire.succession import (
    BROKER_READS,
    MEMBER_READS,
    STANDBY_READS,
    Elsewhere,
    Entry,
    Follow,
    Replica,
    Vote,
)

ENTRY = Entry("a", 0, 11, 3, "gone", 7, "tcp://h:1", "shard", 5, "here", "1.0", 2, True, True, "it left")

EXAMPLES: list[tuple[Message, object]] = [
    (Follow("tcp://h:1"), BROKER_READS),
    (Follow("tcp://h:1", 5, True, 7, 10_000, 9), BROKER_READS),
    (Vote(5), BROKER_READS),
    (Vote(5, False), BROKER_READS),
    (Replica(5, 7), STANDBY_READS),
    (Replica(5, 7, 6, True, 8, 10_000, 9, 0.25, 2.0, 20.0, (ENTRY, Entry("b", 1, 0, 0, "absent"))), STANDBY_READS),
    (Refusal.of(JoinRefused("no")), STANDBY_READS),
    (Stop("why"), STANDBY_READS),
    (Elsewhere(), MEMBER_READS),
    (Elsewhere("tcp://h:1", 5), STANDBY_READS),
]


@pytest.mark.parametrize(("message", "known"), EXAMPLES)
def test_a_message_comes_back_as_it_went(message: Message, known: dict[int, type[Message]]) -> None:
    assert read(unpack(seal(message, -1, 5)), known) == message


@pytest.mark.parametrize(
    "values",
    [
        {"epoch": 1, "sequence": 2, "entries": 3},
        {"epoch": 1, "sequence": 2, "entries": [["a"]]},
        {"epoch": 1, "sequence": 2, "entries": [["a", -1, 2]]},
        {"epoch": 1, "sequence": 2, "entries": [["a", 1, 2, 0, "up", "nonce"]]},
        {"epoch": 0, "sequence": 2},
        {"sequence": 2},
    ],
)
def test_a_replica_with_something_wrong_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(FrameError):
        Replica.from_body(msgpack.packb(values))


def test_a_member_is_not_read_where_only_a_broker_speaks() -> None:
    with pytest.raises(FrameError):
        read(unpack(seal(Vote(1), 3, 5)), STANDBY_READS)
