"""Records: what is packed comes out again, and what does not add up is refused."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from zrpc.wire.records import HEAD, PLACED, pack_placed, pack_record, split_record


class Place:
    def __init__(self, offsets: list[int | None]) -> None:
        self.number = 7
        self.offsets = offsets


MEMORY = bytes(range(256)) * 4


def find(number: int, size: int) -> bytes:
    if number != 7 or size > len(MEMORY):
        raise ValueError("no such segment")
    return MEMORY[:size]


def read(record: bytes) -> list[bytes]:
    count, size = HEAD.unpack_from(record)
    assert size == len(record) - HEAD.size
    return [bytes(frame) for frame in split_record(memoryview(record)[HEAD.size :], count, find)]


def joined(packed: tuple[list[Any], int]) -> bytes:
    pieces, size = packed
    record = b"".join(pieces)
    assert len(record) == size
    return record


@pytest.mark.parametrize("frames", [[b"one"], [b""], [b"a", b"bb", b""], [b"", b"", b""]])
def test_frames_come_out_as_they_were(frames: list[bytes]) -> None:
    assert read(joined(pack_record(frames))) == frames


def test_frames_in_memory() -> None:
    frames = [b"head", MEMORY[64:164], b"here", memoryview(MEMORY[:64])]
    record = joined(pack_placed(frames, Place([64, None, 0])))
    assert len(record) < 150
    assert read(record) == [b"head", MEMORY[64:164], b"here", MEMORY[:64]]


@pytest.mark.parametrize(
    ("count", "body"),
    [
        (0, b"xxxxxxxx"),
        (5, bytes(8)),  # no room for the sizes
        (2, struct.pack("<Q", 200) + b"x"),  # a frame larger than the record
        (2 | PLACED, bytes(8)),
        (1 | PLACED, bytes(64)),  # nothing can be placed
        (2 | PLACED, struct.pack("<QQQ", 8, 10, 0)),  # another segment
        (2 | PLACED, struct.pack("<QQQ", 7, 2000, 0)),  # beyond the segment
        (2 | PLACED, struct.pack("<QQQ", 7, 10, 1 << 63)),
        (2 | PLACED, struct.pack("<QQQ", 7, 10, (1 << 64) - 1)),  # here, but there is nothing
        (3 | PLACED, struct.pack("<QQQQQ", 7, 100, 0, 100, 50)),  # two in the same memory
        (PLACED - 1, bytes(100)),
    ],
)
def test_what_does_not_add_up_is_refused(count: int, body: bytes) -> None:
    with pytest.raises(ValueError):
        split_record(memoryview(body), count, find)


def test_nothing_is_placed_without_a_segment() -> None:
    record = joined(pack_placed([b"head", MEMORY[:64]], Place([0])))
    with pytest.raises(ValueError):
        split_record(memoryview(record)[HEAD.size :], 2 | PLACED, None)


def test_random_records_are_read_or_refused() -> None:
    chance = random.Random(3)
    for _ in range(3000):
        body = memoryview(chance.randbytes(chance.randrange(120)))
        count = chance.choice((1, 2, 3, 2 | PLACED, 3 | PLACED, chance.randrange(1 << 32)))
        try:
            frames = split_record(body, count, find)
        except ValueError:
            continue
        assert sum(len(frame) for frame in frames) <= len(body) + len(MEMORY)
