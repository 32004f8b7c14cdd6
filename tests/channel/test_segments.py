"""Shared memory, and how much of it there may be."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from zrpc.channel.segments import SMALLEST, Pool, Segment, is_sealed, map_memory, memory_of_machine, size_class

MIB = 1 << 20


def test_sizes() -> None:
    for size in (1, MIB, MIB + 1, 3 * MIB, 64 * MIB, 64 * MIB + 1, 5_000_001, (1 << 32) + 5):
        made = size_class(size)
        assert size <= made <= max(SMALLEST, size + size // 4 + 1)
        assert made % mmap.PAGESIZE == 0
        assert size_class(made) == made


def test_both_ends_have_the_same_memory() -> None:
    segment = Segment(1, MIB)
    other = map_memory(segment.fd, MIB)
    segment.memory[:3] = [1, 2, 3]
    assert other[:3].tolist() == [1, 2, 3]
    assert is_sealed(segment.fd, MIB)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)
    segment.close()
    assert other[:3].tolist() == [1, 2, 3]  # it lives as long as somebody has it


def test_memory_that_can_be_taken_away_is_not_taken() -> None:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    assert not is_sealed(fd, MIB)
    os.close(fd)
    assert not is_sealed(fd, MIB)
    segment = Segment(1, MIB)
    assert not is_sealed(segment.fd, 2 * MIB)
    segment.close()


def test_a_pool_has_a_limit() -> None:
    pool = Pool(5 * MIB)
    a = pool.make(4 * MIB)
    assert a is not None
    assert pool.used == 4 * MIB
    assert pool.make(2 * MIB) is None
    assert pool.make(6 * MIB) is None
    b = pool.make(MIB)
    assert b is not None
    assert b.number != a.number
    for segment in (a, b):
        segment.close()
        pool.give_back(segment.size)
    assert pool.used == 0


def test_a_pool_is_never_larger_than_half_of_the_memory() -> None:
    assert Pool(1 << 62).limit == memory_of_machine() // 2
    assert MIB < memory_of_machine() < 1 << 50


def test_others_give_up_what_they_do_not_use() -> None:
    pool = Pool(4 * MIB)
    unused = [pool.make(MIB) for _ in range(4)]

    def give() -> int:
        segment = unused.pop() if unused else None
        if segment is None:
            return 0
        segment.close()
        pool.give_back(segment.size)
        return segment.size

    pool.join(give)
    made = pool.make(3 * MIB)
    assert made is not None
    assert len(unused) == 1
    assert pool.make(4 * MIB) is None
    assert unused == []
    pool.leave(give)
    made.close()


def test_without_memory_it_says_so_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    pool = Pool(4 * MIB)
    assert pool.make(MIB) is None
    assert pool.make(MIB) is None
    assert len(caplog.records) == 1
    assert pool.used == 0


def test_a_new_segment_is_zero() -> None:
    segment = Segment(1, MIB)
    assert not np.any(segment.memory)
    segment.close()


def test_threads_never_get_one_number() -> None:
    """Two threads that make segments at one time: the second comes between the first one's room and its segment."""
    pool = Pool(8 * MIB)
    made: list[Segment | None] = []

    class Interrupted:
        """The pool's lock, with another thread that comes as soon as it is free."""

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            if not made:
                made.append(None)
                made[0] = pool.make(MIB)

    pool._lock = Interrupted()  # type: ignore[assignment]
    made.append(pool.make(MIB))
    assert len({segment.number for segment in made if segment is not None}) == 2
    for segment in made:
        assert segment is not None
        segment.close()
