"""No number is accepted twice, in any order, and memory stays bounded."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from zrpc.protocol.served import CHUNK_BITS, CHUNKS, SPAN, Served

A, B = (0, 100), (1, 101)


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(1, 3000)), max_size=200))
def test_each_number_once(arrivals: list[tuple[tuple[int, int], int]]) -> None:
    served = Served()
    seen: set[tuple[tuple[int, int], int]] = set()
    for sender, number in arrivals:
        assert served.accept(sender, number) is ((sender, number) not in seen)
        seen.add((sender, number))
    assert served.repeated == len(arrivals) - len(seen)


def test_a_long_run_with_repetitions_and_overtaking() -> None:
    chance = random.Random(1)
    served = Served()
    numbers = list(range(1, 3 * SPAN, 3))
    for start in range(0, len(numbers), 1000):
        block = numbers[start : start + 1000] * 2
        chance.shuffle(block)
        assert sum(served.accept(A, number) for number in block) == len(block) // 2
    caller = served._callers[A]
    assert len(caller.chunks) <= CHUNKS
    assert all(chunk < 1 << (1 << CHUNK_BITS) for chunk in caller.chunks.values())


def test_what_is_too_old_to_know_is_not_run() -> None:
    served = Served()
    assert served.accept(A, SPAN + (1 << CHUNK_BITS))
    assert not served.accept(A, 1)
    assert served.accept(A, 2 << CHUNK_BITS)
    assert served.accept(A, SPAN + 1)


def test_another_life_is_another_caller() -> None:
    served = Served()
    assert served.accept((0, 1), 7)
    assert served.accept((0, 2), 7)
    assert not served.accept((0, 1), 7)


def test_the_longest_silent_caller_is_forgotten() -> None:
    served = Served(lives=2)
    for sender in [(0, 1), (1, 1)]:
        assert served.accept(sender, 5)
    assert served.accept((0, 1), 5 + (1 << CHUNK_BITS))
    assert served.accept((2, 1), 5)
    assert not served.accept((0, 1), 5 + (1 << CHUNK_BITS))
    assert repr(served) == "<Served callers=2 repeated=1>"
