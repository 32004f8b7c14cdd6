"""Events of torch's profiler that cross between workers: how they are written, named, and put into the caller's profile.

One rule: times are microseconds on the clock of whoever holds the events; `place` moves them from one to the other.

On the wire (the blob that a reply carries) the events are one msgpack array:

    [elapsed, was cut, [[name, start, end, thread, node, scope, shapes, memory, is async], ...]]

`elapsed` is the time from the call's arrival to its answer, both on the callee; `start` and `end` count from the arrival.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack

from zrpc.errors import FrameError
from zrpc.wire.envelope import Buffer

MARK: Final = "zrpc::call#"
"""Begins the name of the event that stands in a profile where a call was made; its number follows."""
REMOTE: Final = "#remote_op: "
"""Between the key of a call and the name of an event of its callee's; torch's."""
MEMORY: Final = "[memory]"
"""Torch's name for memory that was given or taken outside of any operator."""
MAX_EVENTS: Final = 20_000
"""Of one call. About 2 MB; more are cut off."""
MAX_NAME: Final = 8192


@dataclass(frozen=True, slots=True)
class ProfileEvent:
    """What a profiler saw: an operator, a block that `record_function` names, a call."""

    name: str
    start_us: float
    end_us: float
    thread: int = 0
    node_id: int = -1
    """The id of the worker that it happened on."""
    scope: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    memory: int = 0
    """Bytes allocated less bytes freed, on the CPU."""
    is_async: bool = False


@dataclass(frozen=True)
class RemoteProfile:
    """What a callee recorded for one call."""

    elapsed_us: float
    events: tuple[ProfileEvent, ...]
    was_cut: bool = False


def write_profile(elapsed_us: float, events: Sequence[ProfileEvent]) -> bytes:
    """The events of one call as bytes; at most `MAX_EVENTS` of them."""
    rows = [
        (e.name[:MAX_NAME], e.start_us, e.end_us, e.thread, e.node_id, e.scope, e.shapes, e.memory, e.is_async)
        for e in events[:MAX_EVENTS]
    ]
    written: bytes = msgpack.packb((float(elapsed_us), len(events) > MAX_EVENTS, rows))
    return written


def read_profile(data: Buffer) -> RemoteProfile:
    """The events in some bytes. Raises `FrameError` for anything else."""
    try:
        elapsed, was_cut, rows = msgpack.unpackb(data, max_array_len=MAX_EVENTS)
        events = tuple(_read_event(*row) for row in rows)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise FrameError(f"not the events of a profile: {error}") from None
    if type(elapsed) is not float or type(was_cut) is not bool:
        raise FrameError("not the events of a profile: they begin with other types")
    return RemoteProfile(elapsed, events, was_cut)


def _read_event(
    name: Any, start: Any, end: Any, thread: Any, node: Any, scope: Any, shapes: Any, memory: Any, is_async: Any
) -> ProfileEvent:
    if type(name) is not str or len(name) > MAX_NAME:
        raise ValueError("a name is a text of at most 8192 characters")
    if not all(type(number) in (int, float) for number in (start, end)):
        raise ValueError("a time is a number")
    if not all(type(number) is int for number in (thread, node, scope, memory)) or type(is_async) is not bool:
        raise ValueError("thread, node, scope and memory are integers")
    if not all(type(size) is int for shape in shapes for size in shape):
        raise ValueError("a shape is a list of integers")
    return ProfileEvent(
        name, start, end, thread, node, scope, tuple(tuple(shape) for shape in shapes), memory, is_async
    )


def place(profile: RemoteProfile, key: str, node_id: int, start_us: float, end_us: float) -> list[ProfileEvent]:
    """The callee's events as they stand in the caller's profile, whose call `key` lasted from `start_us` to `end_us`.

    The two clocks are not compared: the time that the call was not at the callee is taken to be half before and half
    after it, as NTP does (RFC 5905), and what is outside of the call even so is cut to it. Events without a node are
    `node_id`'s.
    """
    offset = start_us + max(0.0, (end_us - start_us - profile.elapsed_us) / 2)
    return [
        replace(
            event,
            name=key + REMOTE + event.name,
            node_id=node_id if event.node_id == -1 else event.node_id,
            start_us=min(max(event.start_us + offset, start_us), end_us),
            end_us=min(max(event.end_us + offset, start_us), end_us),
        )
        for event in profile.events
    ]


@dataclass(frozen=True)
class Mark:
    """Where a call stands in a profile."""

    index: int
    """Of the mark among the events."""
    number: int
    """Of the call."""
    thread: int
    at_us: float
    """When the call began, on the profile's clock."""


def find_marks(events: Iterable[tuple[str, float, int]]) -> list[Mark]:
    """The marks among some events, given as (name, start, thread)."""
    return [
        Mark(index, int(name[len(MARK) :]), thread, start)
        for index, (name, start, thread) in enumerate(events)
        if name.startswith(MARK) and name[len(MARK) :].isdecimal()
    ]


def find_keys(events: Sequence[tuple[str, float, int]], marks: Sequence[tuple[Mark, str]]) -> dict[int, int]:
    """For each mark (with the key of its call), the index of the call's own event: {number: index}.

    That is the last one of its name that begins on the mark's thread before it and is no other mark's. A call that had
    not ended when the profile did has none.
    """
    found: dict[int, int] = {}
    taken: set[int] = set()
    for mark, key in sorted(marks, key=lambda pair: pair[0].at_us):
        candidates = [
            (start, index)
            for index, (name, start, thread) in enumerate(events)
            if name == key and thread == mark.thread and start <= mark.at_us and index not in taken
        ]
        earlier = [m.at_us for m, k in marks if k == key and m.thread == mark.thread and m.at_us < mark.at_us]
        if candidates and max(candidates)[0] >= max(earlier, default=-1.0):
            index = max(candidates)[1]
            taken.add(index)
            found[mark.number] = index
    return found
