"""Large messages in pieces: what is cut is put together again, under a window, and nothing that is told is believed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrpc.wire.streams import (
    BEGIN,
    CREDIT,
    CREDIT_BYTES,
    HEAD,
    MARK,
    PIECE,
    PIECE_BYTES,
    STOP,
    STREAM_BYTES,
    WINDOW_BYTES,
    Incoming,
    Outgoing,
    control,
    is_large,
    read_control,
)

ANY = 1 << 40


def take(size: int) -> memoryview:
    return memoryview(bytearray(size))


def begin(frames: list[Any], max_bytes: int = ANY, max_frames: int = 100) -> tuple[Outgoing, Incoming]:
    outgoing = Outgoing(7, frames)
    return outgoing, Incoming([bytes(frame) for frame in outgoing.begin()], take, max_bytes, max_frames)


def carry(outgoing: Outgoing, incoming: Incoming) -> int:
    """Move everything; returns how many pieces it took."""
    pieces = 0
    while not incoming.is_whole:
        piece = outgoing.next_piece()
        assert piece is not None
        pieces += 1
        assert read_control(piece[0]) == (PIECE, 7, 0)
        assert sum(len(part) for part in piece[1:]) <= PIECE_BYTES
        incoming.add(piece[1:])
        credit = incoming.credit_due()
        if credit is not None:
            outgoing.credit(credit)
    assert outgoing.is_sent
    assert outgoing.next_piece() is None
    return pieces


sizes = st.lists(st.sampled_from([0, 1, 17, 5000, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 << 20]), min_size=1)


@given(sizes.filter(lambda given: len(given) < 12))
def test_what_is_cut_is_put_together(given: list[int]) -> None:
    frames = [b"first", *(bytes([1 + index]) * size for index, size in enumerate(given))]
    outgoing, incoming = begin(frames)
    carry(outgoing, incoming)
    assert [bytes(frame) for frame in incoming.message()] == frames


def test_small_frames_share_pieces() -> None:
    outgoing, incoming = begin([b"first", *[b"x" * 1000] * 2000], max_frames=2000)
    with pytest.raises(ValueError, match="2000 frames"):
        Incoming([bytes(frame) for frame in outgoing.begin()], take, ANY, 1999)
    assert carry(*begin([b"first", *[b"x" * 100_000] * 50])) == -(-5_000_000 // PIECE_BYTES)
    assert repr(incoming) == "<Incoming: 0 of 2000000 bytes received>"


def test_no_more_than_a_window_is_under_way() -> None:
    outgoing, incoming = begin([b"first", bytes(2 * WINDOW_BYTES)])
    pieces = []
    while (piece := outgoing.next_piece()) is not None:
        pieces.append(piece)
    assert len(pieces) == WINDOW_BYTES // PIECE_BYTES
    outgoing.credit(WINDOW_BYTES + 1)  # more than was sent
    outgoing.credit(0)
    assert outgoing.next_piece() is None
    for piece in pieces:
        incoming.add(piece[1:])
    assert incoming.credit_due() == WINDOW_BYTES
    assert incoming.credit_due() is None
    outgoing.credit(CREDIT_BYTES)
    assert sum(1 for _ in iter(outgoing.next_piece, None)) == CREDIT_BYTES // PIECE_BYTES


def test_sent_frames_are_let_go() -> None:
    frame = bytearray(STREAM_BYTES)
    outgoing = Outgoing(1, [b"", frame])
    piece = outgoing.next_piece()
    del piece
    frame.clear()  # would raise BufferError if a view were left


def test_what_is_large() -> None:
    assert not is_large([b"first" * STREAM_BYTES])
    assert not is_large([b"first", bytes(STREAM_BYTES - 1)])
    assert is_large([b"first", bytes(STREAM_BYTES - 1), memoryview(b"x")])


@pytest.mark.parametrize(
    "frames",
    [
        [control(BEGIN, 1, 1) + bytes(8)],
        [control(BEGIN, 1, 1) + bytes(8), b"", b""],
        [control(BEGIN, 1, 0), b""],
        [control(BEGIN, 1, 2) + bytes(8), b""],
        [control(BEGIN, 1, 1) + (1001).to_bytes(8, "little"), b""],
        [control(BEGIN, 1, 1 << 60), b""],
    ],
)
def test_beginnings_that_are_none(frames: list[bytes]) -> None:
    with pytest.raises(ValueError, match="a "):
        Incoming(frames, take, 1000, 100)


def test_no_memory_before_the_first_byte() -> None:
    def never(size: int) -> memoryview:
        raise AssertionError(f"{size} bytes were taken")

    outgoing = Outgoing(1, [b"", bytes(100)])
    Incoming([bytes(frame) for frame in outgoing.begin()], never, ANY, 10)


def test_pieces_that_do_not_fit() -> None:
    _, incoming = begin([b"first", bytes(10), bytes(5)])
    with pytest.raises(ValueError, match="beyond its frame"):
        incoming.add([bytes(11)])
    incoming.add([bytes(10), bytes(5)])
    assert incoming.is_whole
    with pytest.raises(ValueError, match="after the end"):
        incoming.add([b"x"])


@pytest.mark.parametrize(
    "frame", [b"", b"\xa5", control(CREDIT, 1)[:-1], control(STOP, 1) + b"x", HEAD.pack(0x5A, CREDIT, 1, 1)]
)
def test_controls_that_are_none(frame: bytes) -> None:
    with pytest.raises(ValueError, match="a message of a stream"):
        read_control(frame)


def test_controls() -> None:
    assert read_control(control(CREDIT, 0xFFFFFFFF, 1 << 63)) == (CREDIT, 0xFFFFFFFF, 1 << 63)
    assert control(STOP, 1)[0] == MARK
