"""The table of calls under way: each ends once, and their bytes are counted."""

from __future__ import annotations

import pytest

from zrpc.protocol.calls import CallTable

A, B = (1, 10), (2, 20)


def table(*calls: tuple[int, tuple[int, int], int]) -> CallTable[str]:
    made: CallTable[str] = CallTable()
    for message_id, worker, size in calls:
        made.begin(message_id, worker, f"call {message_id}", 5.0 + message_id, size)
    return made


def test_a_call_ends_once() -> None:
    calls = table((1, A, 0))
    assert calls.get(1) == "call 1"
    assert calls.finish(1) == "call 1"
    assert calls.finish(1) is None
    assert calls.expire(100) == []
    with pytest.raises(ValueError, match="pending already"):
        table((1, A, 0), (1, B, 0))


@pytest.mark.parametrize("end", ["finish", "expire", "lose", "drain"])
def test_whichever_way_a_call_ends_its_bytes_are_free(end: str) -> None:
    calls = table((1, A, 30), (2, A, 40), (3, B, 50), (4, B, 0))
    assert calls.pending_bytes == 120
    if end == "finish":
        calls.finish(1)
        assert calls.pending_bytes == 90
        for message_id in (2, 3, 4):
            calls.finish(message_id)
    elif end == "expire":
        assert calls.expire(6.0) == ["call 1"]
        assert calls.pending_bytes == 90
        calls.expire(100)
    elif end == "lose":
        assert calls.lose(A) == ["call 1", "call 2"]
        assert calls.pending_bytes == 50
        calls.lose(B)
    else:
        assert len(calls.drain()) == 4
    assert (calls.pending_bytes, calls._bytes_of) == (0, {})


def test_room() -> None:
    calls = table((1, A, 60))
    assert calls.has_room(A, 40, 100, 200)
    assert not calls.has_room(A, 41, 100, 200)
    assert calls.has_room(B, 140, 100, 200)  # one may be larger than the limit
    assert not calls.has_room(B, 141, 100, 200)
    calls.finish(1)
    assert calls.has_room(A, 1000, 100, 200)
