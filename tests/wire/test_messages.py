from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrpc.errors import FrameError, InvalidName, JoinRefused, NameTaken, StaleIncarnation, VersionMismatch, ZrpcError
from zrpc.wire.envelope import VERSION, Codec, Envelope, Kind, pack, unpack
from zrpc.wire.messages import (
    TO_BROKER,
    TO_MEMBER,
    Answer,
    Beat,
    Challenge,
    Gone,
    Goodbye,
    GroupProgress,
    Hello,
    Member,
    Members,
    Message,
    Query,
    Refusal,
    Resolve,
    Roster,
    Scale,
    ShutdownReport,
    ShutdownState,
    Stop,
    Welcome,
    read,
    seal,
)

A = Member("a", 0, 11, 0, "tcp://127.0.0.1:1", "shard", "up", 7, "here", "1.0")
B = Member("b", 1, 12, 3, "tcp://127.0.0.1:2")

EXAMPLES: list[Message] = [
    Hello("a", 1, "tcp://h:1"),
    Hello("a", (1 << 64) - 1, "tcp://h:1", "role", 3, 4, 5, 6, "host", "1.0", 7, True, True),
    Beat(),
    Beat(3, True, {"calls_served": 3, "busy_seconds": 0.25}),
    Resolve(9),
    ShutdownReport(1, 2, 3, 4),
    Goodbye("why"),
    Query(),
    Query("events", 7),
    Stop("why"),
    Scale("shard", 3),
    Stop("why", ("a", "b")),
    Welcome(1, 2, 3, 4, "c", 5, 6, 0.5, 3.0, Roster((A, B))),
    Refusal.of(NameTaken("a", "pid 3"), 9),
    GroupProgress(("a",), ("b",), 1, 2),
    Members(1, 2, 1, False, Roster((A,)), (Gone("b", 1, 12, "x"),)),
    Members(1, 2, 0, True, Roster()),
    Challenge(8),
    ShutdownState(1, True, ("a",), 1),
    Answer({"members": [{"name": "a", "uptime": 1.5}], "none": None}),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    assert type(message).from_body(message.to_body()) == message
    assert type(message).from_body(memoryview(message.to_body())) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_travels_in_an_envelope(message: Message) -> None:
    envelope = unpack(seal(message, -1, 5, 6, 7))
    assert (envelope.sender, envelope.sender_incarnation, envelope.receiver_incarnation) == (-1, 5, 6)
    assert (envelope.message_id, envelope.codec, envelope.kind) == (7, Codec.MSGPACK, message.KIND)
    known = TO_BROKER if TO_BROKER.get(message.KIND) is type(message) else TO_MEMBER
    assert read(envelope, known) == message


def test_unknown_keys_are_ignored_and_absent_ones_have_defaults() -> None:
    body = msgpack.packb({"name": "a", "nonce": 1, "address": "tcp://h:1", "colour": "red"})
    assert Hello.from_body(body) == Hello("a", 1, "tcp://h:1")


@pytest.mark.parametrize(
    ("cls", "changes"),
    [
        (Hello, {"name": 3}),
        (Hello, {"name": "x" * 1025}),
        (Hello, {"nonce": 0}),
        (Hello, {"nonce": True}),
        (Hello, {"nonce": -1}),
        (Hello, {"address": "nonsense"}),
        (Hello, {"address": "tcp://" + "x" * 300}),
        (Hello, {"address": "tcp://a b"}),
        (Hello, {"address": "tcp://a\n"}),
        (Hello, {"role": "x" * 129}),
        (Hello, {"id": -2}),
        (Hello, {"id": 1 << 31}),
        (Hello, {"id": 1.0}),
        (Hello, {"incarnation": 1 << 63}),
        (Hello, {"life": 1 << 31}),
        (Hello, {"pid": -1}),
        (Hello, {"host": "x" * 256}),
        (Hello, {"world_size": 65_536}),
        (Hello, {"wait": 1}),
        (Hello, {"strict": None}),
        (Beat, {"statistics": {str(n): n for n in range(33)}}),
        (Beat, {"statistics": {"x" * 65: 1}}),
        (Beat, {"statistics": {"a": "b"}}),
        (Beat, {"statistics": {"a": float("nan")}}),
        (Beat, {"statistics": {"a": float("inf")}}),
        (Beat, {"statistics": {"a": True}}),
        (Beat, {"statistics": []}),
        (ShutdownReport, {"sent": -1}),
        (Stop, {"names": "ab"}),
        (Stop, {"names": [1]}),
        (Goodbye, {"why": "x" * 1025}),
        (GroupProgress, {"present": ["a"] * 65}),
        (GroupProgress, {"present": None}),
        (Welcome, {"heartbeat_interval": 0}),
        (Welcome, {"heartbeat_interval": float("nan")}),
        (Welcome, {"members": []}),
        (Welcome, {"members": b"\xc1"}),
        (Welcome, {"members": msgpack.packb({})}),
        (Welcome, {"members": msgpack.packb([[]])}),
        (Welcome, {"members": msgpack.packb([["a", 0, 1]])}),
        (Welcome, {"members": msgpack.packb([["a", 0, 0, 0, "tcp://h:1"]])}),
        (Members, {"gone": [["a", 0, 1, 3]]}),
        (Members, {"gone": 3}),
        (Refusal, {"fields": {"a": [1]}}),
        (Refusal, {"fields": {"a": "x" * 1025}}),
        (Answer, {"data": 3}),
    ],
)
def test_a_field_out_of_bounds_breaks_the_frame(cls: type[Message], changes: dict[str, Any]) -> None:
    example = next(message for message in EXAMPLES if type(message) is cls)
    values = {**msgpack.unpackb(example.to_body()), **changes}
    with pytest.raises(FrameError, match=next(iter(changes))):
        cls.from_body(msgpack.packb(values))


@pytest.mark.parametrize("cls", sorted({type(message) for message in EXAMPLES}, key=lambda c: c.__name__))
@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x01", b"\x90", b"\x81", b"\x91" * 5000, b"\x81\xa4name\xa1\xff", b"\xdf\xff\xff\xff\xff"]
)
def test_a_body_that_is_no_map_breaks_the_frame(cls: type[Message], body: bytes) -> None:
    with pytest.raises(FrameError):
        cls.from_body(body)


def test_a_required_field_that_is_absent_breaks_the_frame() -> None:
    with pytest.raises(FrameError, match="Hello has no nonce"):
        Hello.from_body(msgpack.packb({"name": "a", "address": "tcp://h:1"}))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(EXAMPLES), st.data())
def test_any_value_in_any_field_is_read_within_bounds_or_refused(message: Message, data: st.DataObject) -> None:
    values = msgpack.unpackb(message.to_body())
    key = data.draw(st.sampled_from(sorted(values) or ["x"]))
    values[key] = data.draw(ANYTHING)
    try:
        back = type(message).from_body(msgpack.packb(values))
    except FrameError:
        return
    again = type(message).from_body(back.to_body())
    if "nan" not in repr(back):
        assert again == back


@given(
    st.sampled_from(sorted({type(message) for message in EXAMPLES}, key=lambda c: c.__name__)), st.binary(max_size=200)
)
def test_any_bytes_are_read_or_refused(cls: type[Message], body: bytes) -> None:
    try:
        message = cls.from_body(body)
    except FrameError:
        return
    assert isinstance(message, cls)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_changed_byte_is_read_or_refused(message: Message, data: st.DataObject) -> None:
    body = bytearray(message.to_body())
    if body:
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        type(message).from_body(bytes(body))
    except FrameError:
        pass


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (NameTaken("a", "pid 3 on h"), {"name": "a", "holder": "pid 3 on h"}),
        (InvalidName("a b", "it has a space"), {"name": "a b", "why": "it has a space"}),
        (JoinRefused("no room"), {}),
        (StaleIncarnation("newer"), {}),
    ],
)
def test_a_refusal_is_raised_as_the_error_that_it_was(error: ZrpcError, fields: dict[str, Any]) -> None:
    refusal = Refusal.from_body(Refusal.of(error, 4).to_body())
    back = refusal.to_error()
    assert (type(back), str(back), refusal.fields, refusal.nonce) == (type(error), str(error), fields, 4)


def test_a_version_mismatch_is_seen_from_the_other_side() -> None:
    back = Refusal.of(VersionMismatch(9, 1)).to_error()
    assert isinstance(back, VersionMismatch)
    assert (back.theirs, back.ours) == (1, VERSION)


def test_an_error_that_is_not_known_here_is_a_refused_join() -> None:
    back = Refusal("NewError", "it rains").to_error()
    assert isinstance(back, JoinRefused)
    assert str(back) == "NewError: it rains"


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(Kind.CALL, codec=Codec.MSGPACK, body=b"\x80"),
        Envelope(Kind.WELCOME, codec=Codec.MSGPACK, body=b"\x80"),
        Envelope(Kind.PROGRESS, codec=Codec.PYTHON, body=b"\x80"),
        Envelope(Kind.PROGRESS, codec=Codec.MSGPACK, body=b"\x80", buffers=[b"x"]),
    ],
)
def test_what_is_no_message_for_the_broker_is_refused(envelope: Envelope) -> None:
    with pytest.raises(FrameError):
        read(unpack(pack(envelope)), TO_BROKER)


def test_all_messages_are_examined_here() -> None:
    assert {type(message) for message in EXAMPLES} == {*TO_BROKER.values(), *TO_MEMBER.values()}
    assert all(dataclasses.is_dataclass(message) for message in EXAMPLES)
