from __future__ import annotations

import zlib

import msgpack
import pytest

from zrpc.errors import FrameError
from zrpc.wire.fields import MAX_BODY_BYTES
from zrpc.wire.roster import SQUEEZED, Gone, Member, Roster, pack_gone, read_gone


def members(count: int) -> list[Member]:
    return [Member(f"w{number}", number, number + 1, 0, f"tcp://127.0.0.1:{number + 1}") for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_roster_is_packed_once_and_comes_back(count: int) -> None:
    roster = Roster(members(count))
    packed = roster.packed()
    assert roster.packed() is packed
    back = Roster.read(packed, "x")
    assert (back, back.packed()) == (roster, packed)


def test_a_large_roster_is_squeezed_and_so_are_many_who_are_gone() -> None:
    rows = members(1000)
    assert len(Roster(rows).packed()) < 1000 * 20
    gone = tuple(Gone(member.name, member.id, member.incarnation, "its connection closed") for member in rows)
    packed = pack_gone(gone)
    assert len(packed) < 1000 * 20
    assert read_gone(packed, "x") == gone


def test_what_is_left_out_of_a_row_has_its_default() -> None:
    (member,) = Roster.read(msgpack.packb([["a", 0, 1, 0, "tcp://h:1"]]), "x").members
    assert (member.role, member.state, member.pid) == ("", "up", 0)


LARGE = msgpack.packb(["x" * 100] * SQUEEZED)


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        zlib.compress(b"\xc1"),
        zlib.compress(LARGE)[:-1],
        zlib.compress(LARGE) + b"x",
        zlib.compress(zlib.compress(LARGE)),
        b"\x78\x9c" + b"\xff" * 50,
        zlib.compress(bytes(MAX_BODY_BYTES + 1), 9),
        None,
        "text",
    ],
    ids=["letter", "no msgpack", "cut", "longer", "twice", "no stream", "bomb", "nothing", "text"],
)
def test_bytes_that_are_no_roster_break_the_frame(value: object) -> None:
    with pytest.raises(FrameError, match="x is"):
        Roster.read(value, "x")


def test_what_has_changed_since() -> None:
    a, b, c = members(3)
    newer = Member("w1", 1, 9, 1, "tcp://127.0.0.1:9")
    late = Gone("w1", 1, 9)
    roster = Roster((a, b, c))
    assert roster.after((), Roster()) == (a, b, c)
    assert set(roster.after((Gone("w0", 0, 1),), Roster((newer,)))) == {newer, c}
    assert set(roster.after((late,), Roster((newer,)))) == {a, newer, c}, (
        "who is up now was not yet gone when it was told"
    )
    assert Roster().after((), Roster((a,))) == (a,)
