"""Memory for what is received: one user at a time, used again, and not without end."""

from __future__ import annotations

import gc

import numpy as np

from zrpc.transport.landing import LEAST_BYTES, Landing

MIB = 1 << 20


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_memory_is_used_again_when_its_last_view_is_gone() -> None:
    landing = Landing()
    first = landing.take(2 * MIB)
    where = address(first)
    array = np.frombuffer(first[10:], np.uint8)
    del first
    gc.collect()
    assert landing.unused_bytes() == 0
    other = landing.take(2 * MIB)
    assert address(other) != where
    del array
    gc.collect()
    assert landing.unused_bytes() == 2 * MIB
    again = landing.take(2 * MIB - 1000)
    assert address(again) == where
    assert again.nbytes == 2 * MIB - 1000
    assert landing.unused_bytes() == 0


def test_memory_is_writable_and_says_that_it_is_given() -> None:
    for size in (100, LEAST_BYTES):
        view = Landing().take(size)
        view[:] = bytes(size)
        assert view.obj.is_given  # type: ignore[attr-defined]


def test_much_larger_memory_is_not_wasted_on_it() -> None:
    landing = Landing()
    landing.take(4 * MIB)
    gc.collect()
    assert landing.take(1 * MIB).nbytes == 1 * MIB
    gc.collect()
    assert landing.unused_bytes() == 5 * MIB


def test_what_is_kept_is_bounded() -> None:
    landing = Landing(limit=10 * MIB)
    held = [landing.take(3 * MIB) for _ in range(5)]
    held.clear()
    gc.collect()
    assert landing.unused_bytes() == 9 * MIB
    landing.take(11 * MIB)
    gc.collect()
    assert landing.unused_bytes() == 9 * MIB
