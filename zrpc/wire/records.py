"""Records: messages one after the other in a stream of bytes, as local connections carry them.

One rule: sizes are checked before they are used, and a record that does not add up raises ValueError.

Integers are little-endian:

    | frames u32 | size u64 | sizes of all frames but the first, u64 each | frame 0 | frame 1 | ... |

`size` counts everything after itself. With the highest bit of `frames` set, some of them are in shared memory, and what
follows the size is

    | segment u64 | for each frame but the first: size u64, offset in the segment u64 | frame 0 | those that are here |

where an offset of 2^64-1 says that the frame is here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from zrpc.wire.envelope import Buffer

HEAD: Final = struct.Struct("<IQ")
PLACED: Final = 1 << 31
"""The bit of the number of frames that says that some are in shared memory."""
_HERE: Final = (1 << 64) - 1


Find = Callable[[int, int], Any]
"""The beginning, of a size, of the segment of a number. Raises ValueError when there is none."""


class Placement(Protocol):
    """Where some frames of a message are: in a segment of shared memory, at an offset each, or (None) in the message."""

    @property
    def number(self) -> int: ...

    offsets: list[int | None]


def pack_record(frames: Sequence[Buffer]) -> tuple[list[Any], int]:
    """The pieces of a record, and their size."""
    if len(frames) == 1:
        size = len(frames[0])
        return [HEAD.pack(1, size) + frames[0]], size + HEAD.size
    sizes = [frame.nbytes if isinstance(frame, memoryview) else len(frame) for frame in frames]
    count = len(sizes)
    size = sum(sizes) + 8 * (count - 1)
    head = b"".join((HEAD.pack(count, size), struct.pack(f"<{count - 1}Q", *sizes[1:]), frames[0]))
    rest = [frame.cast("B") if isinstance(frame, memoryview) else frame for frame in frames[1:]]
    return [head, *rest], size + HEAD.size


def pack_placed(frames: Sequence[Buffer], placed: Placement) -> tuple[list[Any], int]:
    """As `pack_record`, for frames of which some are in shared memory."""
    table: list[int] = []
    rest = []
    size = len(frames[0]) + 8
    for frame, offset in zip(frames[1:], placed.offsets, strict=True):
        length = frame.nbytes if isinstance(frame, memoryview) else len(frame)
        table += (length, _HERE if offset is None else offset)
        size += 16
        if offset is None:
            size += length
            rest.append(frame.cast("B") if isinstance(frame, memoryview) else frame)
    numbers = struct.pack(f"<Q{len(table)}Q", placed.number, *table)
    return [b"".join((HEAD.pack(len(frames) | PLACED, size), numbers, frames[0])), *rest], size + HEAD.size


def _find_placed(record: memoryview, count: int, find: Find | None) -> list[Any]:
    """The frames of a record of which some are in shared memory. Raises ValueError when they are not there."""
    end_of_table = 16 * count - 8
    if count < 2 or end_of_table > record.nbytes or find is None:
        raise ValueError("a record without room for its places")
    number, *table = struct.unpack_from(f"<Q{2 * count - 2}Q", record)
    sizes, offsets = table[::2], table[1::2]
    here = sum(size for size, offset in zip(sizes, offsets, strict=True) if offset == _HERE)
    position = record.nbytes - here
    if position < end_of_table:
        raise ValueError("frames that are larger than their record")
    placed = [(offset, offset + size) for size, offset in zip(sizes, offsets, strict=True) if offset != _HERE]
    if any(start < end for (_, end), (start, _) in zip(sorted(placed), sorted(placed)[1:], strict=False)):
        raise ValueError("frames in the same memory")
    memory = memoryview(find(number, max((end for _, end in placed), default=0)))
    frames = [record[end_of_table:position]]
    for size, offset in zip(sizes, offsets, strict=True):
        if offset == _HERE:
            frames.append(record[position : position + size])
            position += size
        else:
            frames.append(memory[offset : offset + size])
    return frames


def split_record(body: memoryview, count: int, find: Find | None = None) -> list[Any]:
    """The frames of a record, from what follows its size; `find` finds its segment. Raises ValueError when it is none."""
    if count == 1:
        return [body]
    if count & PLACED:
        return _find_placed(body, count & ~PLACED, find)
    return _split(body, count)


def _split(record: memoryview, count: int) -> list[Any]:
    """The frames of a record. Raises ValueError when its sizes do not fit."""
    table = 8 * (count - 1)
    if not count or table > record.nbytes:
        raise ValueError("a record without room for its sizes")
    sizes = struct.unpack_from(f"<{count - 1}Q", record)
    position = record.nbytes - sum(sizes)
    if position < table:
        raise ValueError("frames that are larger than their record")
    frames = [record[table:position]]
    for size in sizes:
        frames.append(record[position : position + size])
        position += size
    return frames
