from __future__ import annotations

import msgpack
import pytest

from zrpc.errors import FrameError
from zrpc.wire.fields import address, flag, integer, number, texts, unpack_map


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (integer(0, 5), [0, 5], [-1, 6, True, 1.0, "1", None]),
        (number(0.5, 2), [0.5, 1, 2], [0.4, 3, True, "1", None, float("nan")]),
        (flag(), [True, False], [0, 1, None]),
        (
            address(),
            ["tcp://h:1", "memory://x", "ipc://@a"],
            ["", "h:1", "TCP://h:1", "tcp://", "tcp://é", b"tcp://h:1"],
        ),
        (texts(2, 3), [[], ["abc", "d"]], [["abcd"], ["a"] * 3, None, "ab", [1]]),
        (texts(2, 3, None), [None, ["a"]], [0, [None]]),
    ],
)
def test_a_reader_takes_its_type_within_its_bounds(field: object, good: list[object], bad: list[object]) -> None:
    reader = field.metadata["read"]  # type: ignore[attr-defined]
    for value in good:
        reader(value, "it")
    for value in bad:
        with pytest.raises(FrameError, match="it is not"):
            reader(value, "it")


def test_a_body_over_the_limit_is_refused_unread() -> None:
    body = msgpack.packb({"a": "x" * 100})
    assert unpack_map(memoryview(body), "it") == {"a": "x" * 100}
    with pytest.raises(FrameError, match="the body of it is 105 bytes, over the limit of 50"):
        unpack_map(body, "it", 50)
