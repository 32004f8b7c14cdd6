"""Events of callees in a caller's profile: written, read, moved in time, and found again."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrpc.errors import FrameError
from zrpc.telemetry.profile_events import (
    MARK,
    MAX_EVENTS,
    Mark,
    ProfileEvent,
    RemoteProfile,
    find_keys,
    find_marks,
    place,
    read_profile,
    write_profile,
)

ADD = ProfileEvent("aten::add", 10.0, 30.0, thread=3, scope=0, shapes=((2, 3), ()), memory=24)
EMPTY = ProfileEvent("aten::empty", 12.0, 15.0, thread=3)


def test_events_survive_the_wire() -> None:
    nested = ProfileEvent("rpc_async#f(b -> c)", 0.5, 99.0, node_id=7, is_async=True)
    assert read_profile(write_profile(120.0, [ADD, nested])) == RemoteProfile(120.0, (ADD, nested))


def test_too_many_events_are_cut_off() -> None:
    profile = read_profile(write_profile(1.0, [EMPTY] * (MAX_EVENTS + 1)))
    assert (len(profile.events), profile.was_cut) == (MAX_EVENTS, True)


ROW = ("aten::add", 0.0, 1.0, 0, 0, 0, [], 0, False)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"\xc1",
        msgpack.packb(3),
        msgpack.packb((1.0, False)),
        msgpack.packb(("1", False, [])),
        msgpack.packb((1.0, 0, [])),
        msgpack.packb((1.0, False, [ROW[:-1]])),
        msgpack.packb((1.0, False, [(b"x", *ROW[1:])])),
        msgpack.packb((1.0, False, [("x" * 9000, *ROW[1:])])),
        msgpack.packb((1.0, False, [(*ROW[:1], "0", *ROW[2:])])),
        msgpack.packb((1.0, False, [(*ROW[:3], None, *ROW[4:])])),
        msgpack.packb((1.0, False, [(*ROW[:6], [["a"]], *ROW[7:])])),
        msgpack.packb((1.0, False, [(*ROW[:8], 1)])),
        msgpack.packb((1.0, False, [ROW] * (MAX_EVENTS + 1))),
    ],
)
def test_what_is_not_a_profile_is_refused(blob: bytes) -> None:
    with pytest.raises(FrameError):
        read_profile(blob)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(blob: bytes) -> None:
    try:
        assert isinstance(read_profile(blob), RemoteProfile)
    except FrameError:
        pass


def test_the_callee_stands_in_the_middle_of_the_call() -> None:
    add, empty = place(RemoteProfile(40.0, (ADD, EMPTY)), "key", 2, 1000.0, 1100.0)
    assert (add.start_us, add.end_us) == (1040.0, 1060.0)
    assert (empty.start_us, empty.end_us) == (1042.0, 1045.0)
    assert (add.name, add.node_id) == ("key#remote_op: aten::add", 2)
    assert add.shapes == ADD.shapes
    assert add.memory == 24


def test_an_event_of_a_third_worker_keeps_its_node() -> None:
    nested = ProfileEvent("rpc_sync#f(b -> c)#remote_op: aten::add", 0.0, 1.0, node_id=9)
    [event] = place(RemoteProfile(1.0, (nested,)), "rpc_sync#g(a -> b)", 2, 0.0, 1.0)
    assert event.name == "rpc_sync#g(a -> b)#remote_op: rpc_sync#f(b -> c)#remote_op: aten::add"
    assert event.node_id == 9


@given(
    st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6), st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)))
)
def test_no_event_is_outside_of_its_call(
    start: float, length: float, elapsed: float, times: list[tuple[float, float]]
) -> None:
    """Whatever the callee says: its clock may run fast, and its answer may be made up."""
    events = tuple(ProfileEvent("e", at, at + took) for at, took in times)
    for event in place(RemoteProfile(elapsed, events), "key", 1, start, start + length):
        assert start <= event.start_us <= event.end_us <= start + length


def test_marks_are_found_by_their_name() -> None:
    events = [("aten::add", 1.0, 1), (f"{MARK}12", 2.0, 1), (f"{MARK}x", 3.0, 1), (MARK, 4.0, 1)]
    assert find_marks(events) == [Mark(1, 12, 1, 2.0)]


def test_each_mark_finds_the_event_of_its_own_call() -> None:
    events = [
        ("f", 1.0, 1),
        (f"{MARK}1", 1.5, 1),
        ("f", 2.0, 1),
        (f"{MARK}2", 2.5, 1),
        ("f", 2.2, 7),  # the same call on another thread
        (f"{MARK}3", 2.7, 7),
        ("g", 2.9, 7),
        (f"{MARK}4", 3.0, 7),
    ]
    keys = {1: "f", 2: "f", 3: "f", 4: "g"}
    marks = [(mark, keys[mark.number]) for mark in find_marks(events)]
    assert find_keys(events, marks) == {1: 0, 2: 2, 3: 4, 4: 6}


def test_a_call_that_had_not_ended_has_no_event() -> None:
    events = [("f", 1.0, 1), (f"{MARK}1", 1.5, 1), (f"{MARK}2", 2.5, 1)]
    marks = [(mark, "f") for mark in find_marks(events)]
    assert find_keys(events, marks) == {1: 0}
    assert find_keys(events[1:], [(mark, "f") for mark in find_marks(events[1:])]) == {}
