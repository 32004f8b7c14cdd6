"""The envelope: what goes in comes out, and what no correct peer sends is refused."""

from __future__ import annotations

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrpc.errors import FrameError, LimitExceeded, VersionMismatch, ZrpcError
from zrpc.wire.envelope import (
    CHECK,
    INLINE_BODY_BYTES,
    INLINE_BUFFER_BYTES,
    KNOWN_BYTES,
    PREAMBLE_BYTES,
    VERSION,
    Codec,
    Envelope,
    Kind,
    pack,
    unpack,
)
from zrpc.wire.limits import Limits

u63 = st.integers(0, (1 << 63) - 1)
envelopes = st.builds(
    Envelope,
    kind=st.sampled_from(list(Kind)),
    message_id=st.integers(0, (1 << 64) - 1),
    sender=st.integers(-2, 1 << 40),
    sender_incarnation=u63,
    receiver_incarnation=u63,
    time_left_us=u63,
    codec=st.sampled_from(list(Codec)),
    body=st.binary(max_size=200),
    buffers=st.lists(st.binary(max_size=100), max_size=5),
    function=st.none() | st.text(max_size=50),
    code=st.none() | st.binary(min_size=32, max_size=32),
    rref=st.none() | st.tuples(*[u63] * 8),
    autograd=st.none() | st.tuples(u63, u63),
    trace=st.none() | st.binary(min_size=24, max_size=24),
    extra=st.none() | st.dictionaries(st.integers(0, 255), st.integers() | st.binary(max_size=9), max_size=3),
)


def fields(envelope: Envelope) -> dict[str, object]:
    found = {name: getattr(envelope, name) for name in Envelope.__slots__}
    found["body"] = bytes(envelope.body)
    found["buffers"] = [bytes(b) for b in envelope.buffers]
    return found


@given(envelopes)
def test_round_trip(envelope: Envelope) -> None:
    try:
        frames = pack(envelope)
    except OverflowError:  # msgpack integers end at 64 bits; only `extra` is free enough to hold more
        return
    assert fields(unpack([bytes(f) for f in frames])) == fields(envelope)


def test_a_small_message_is_one_frame() -> None:
    frames = pack(Envelope(Kind.CALL, 1, body=b"x" * 100, buffers=[b"y" * 32, b"z" * 32]))
    assert len(frames) == 1


def test_frames_must_be_those_that_are_described() -> None:
    whole = pack(Envelope(Kind.CALL, 1, body=bytes(INLINE_BODY_BYTES + 1), buffers=[bytes(INLINE_BUFFER_BYTES + 1)]))
    with pytest.raises(FrameError, match="missing"):
        unpack(whole[:-1])
    with pytest.raises(FrameError, match="its descriptor says"):
        unpack([*whole[:2], bytes(INLINE_BUFFER_BYTES)])
    with pytest.raises(FrameError, match="left over"):
        unpack([*whole, b""])


def test_large_parts_are_frames_of_their_own_and_are_not_copied() -> None:
    body, buffer = bytes(INLINE_BODY_BYTES + 1), bytearray(INLINE_BUFFER_BYTES + 1)
    frames = pack(Envelope(Kind.CALL, 1, body=body, buffers=[b"small", buffer]))
    assert len(frames) == 3
    assert frames[1] is body
    assert frames[2] is buffer
    decoded = unpack(frames)
    assert bytes(decoded.body) == body
    assert [bytes(b) for b in decoded.buffers] == [b"small", bytes(buffer)]


@given(envelopes, st.data())
def test_cut_or_changed_bytes_never_do_more_than_raise(envelope: Envelope, data: st.DataObject) -> None:
    try:
        frames = [bytearray(f) for f in pack(envelope)]
    except OverflowError:
        return
    frame = frames[data.draw(st.integers(0, len(frames) - 1))]
    if data.draw(st.booleans()) or not frame:
        del frame[data.draw(st.integers(0, len(frame))) :]
    else:
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        unpack(frames)
    except ZrpcError:
        pass


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_garbage_is_a_frame_error(frames: list[bytes]) -> None:
    with pytest.raises(ZrpcError):
        unpack(frames)


def test_another_version_is_told_apart() -> None:
    frame = bytearray(pack(Envelope(Kind.CALL, 1))[0])
    frame[1] = VERSION + 1
    with pytest.raises(VersionMismatch, match=f"version {VERSION + 1}") as caught:
        unpack([frame])
    assert caught.value.theirs == VERSION + 1


def _with_header(what: object, about: object = None, body: bytes = b"", left: int = 0) -> list[bytes]:
    parts = [msgpack.packb(what), b"" if about is None else msgpack.packb(about)]
    sizes = [len(part) for part in (*parts, body)]
    return [
        b"".join((struct.pack("<BBHIIIQQH", 0x5A, VERSION, 0, *sizes, 7, left, (7 + 3 * left) % CHECK), *parts, body))
    ]


GOOD: list[object] = [1, 0, 0, 0, 0, None, None, None]
GOOD_ABOUT: list[object] = [None, None, None]


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 256),
        (0, "call"),
        (0, True),
        (1, -3),
        (2, 1 << 63),
        (3, None),
        (4, 1.5),
        (5, {}),
        (5, [0]),
        (5, [0, -1]),
        (5, [0, 1 << 62]),
        (5, [1, 5]),
        (5, [9, 0]),
        (5, [True, 0]),
        (5, [0, 0] * 70_000),
        (6, b"bytes"),
        (6, "x" * 5000),
        (7, b"short"),
    ],
)
def test_a_header_field_out_of_range_is_refused(position: int, value: object) -> None:
    unpack(_with_header(GOOD))
    header = list(GOOD)
    header[position] = value
    for _ in range(2):  # what is refused once is refused again
        with pytest.raises(FrameError):
            unpack(_with_header(header))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, [1, 2, 3, 4]),
        (0, [1, 2, 3, 4, 5, 6, 7, -8]),
        (1, [1]),
        (2, []),
    ],
)
def test_a_field_about_a_message_out_of_range_is_refused(position: int, value: object) -> None:
    unpack(_with_header(GOOD, GOOD_ABOUT))
    about = list(GOOD_ABOUT)
    about[position] = value
    with pytest.raises(FrameError):
        unpack(_with_header(GOOD, about))


def test_a_trace_that_is_cut_off_is_refused() -> None:
    frame = pack(Envelope(Kind.CALL, 1, trace=bytes(range(24))))[0]
    assert unpack([frame]).trace == bytes(range(24))
    with pytest.raises(FrameError, match="does not fit"):
        unpack([frame[:50]])


def test_a_damaged_id_is_noticed() -> None:
    envelope = Envelope(Kind.CALL, 0x1234, time_left_us=60_000_000)
    for place in range(16, 32):
        for bit in range(8):
            frame = bytearray(pack(envelope)[0])
            frame[place] ^= 1 << bit
            with pytest.raises(FrameError, match=r"damaged|u63"):
                unpack([frame])


def test_time_left_has_63_bits() -> None:
    assert unpack(_with_header(GOOD, left=(1 << 63) - 1)).time_left_us == (1 << 63) - 1
    with pytest.raises(FrameError, match="time left"):
        unpack(_with_header(GOOD, left=1 << 63))


def test_what_is_known_already_is_read_the_same() -> None:
    envelope = Envelope(
        Kind.CALL, 1, 3, 4, 5, codec=2, body=b"body", buffers=[b"one", b"other"], function="f", code=bytes(32)
    )
    first, again = unpack(pack(envelope)), unpack(pack(envelope))
    assert fields(first) == fields(again) == fields(envelope)
    again.buffers = again.buffers[:1]
    assert fields(unpack(pack(envelope))) == fields(envelope), "what is known is nobody's to change"


def test_what_is_too_long_to_be_remembered_is_read_all_the_same() -> None:
    envelope = Envelope(Kind.CALL, 1, function="f" * KNOWN_BYTES, buffers=[b"x"] * 500)
    assert fields(unpack(pack(envelope))) == fields(envelope)


def test_a_header_that_claims_more_than_there_is() -> None:
    frame = bytearray(_with_header(GOOD)[0])
    struct.pack_into("<I", frame, 4, 1 << 31)
    with pytest.raises(FrameError, match="does not fit"):
        unpack([frame])


def test_bytes_left_over_are_refused() -> None:
    with pytest.raises(FrameError, match="left over"):
        unpack([_with_header(GOOD)[0] + b"more"])
    with pytest.raises(FrameError, match="left over"):
        unpack([_with_header(GOOD)[0], b"another frame"])


@pytest.mark.parametrize(
    ("limits", "envelope"),
    [
        (Limits(message_bytes=99), Envelope(Kind.CALL, 1, body=bytes(100))),
        (Limits(message_bytes=99), Envelope(Kind.CALL, 1, buffers=[bytes(50), bytes(50)])),
        (Limits(buffers=1), Envelope(Kind.CALL, 1, buffers=[b"", b""])),
        (Limits(header_bytes=20), Envelope(Kind.CALL, 1, function="f" * 100)),
    ],
)
def test_a_message_over_a_limit_is_refused_by_the_sender_and_by_the_receiver(
    limits: Limits, envelope: Envelope
) -> None:
    with pytest.raises(LimitExceeded):
        pack(envelope, limits)
    frames = pack(envelope)
    with pytest.raises(FrameError):
        unpack(frames, limits)


def test_repr_names_kind_and_sender() -> None:
    assert repr(Envelope(Kind.CALL, 7, 3, 9, function="f")) == "<Envelope CALL id=7 from=3/9 f body=0 buffers=0>"
    assert PREAMBLE_BYTES == 34
