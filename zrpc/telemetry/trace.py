"""What a worker records of its calls while a trace is taken: when each of their parts began.

One rule: a tracer that is off costs its user one look at `is_on`, or at an envelope's `span`.

A span is one call as its caller sees it, the same call as its callee sees it, or a block that the program named. The two
sides of a call share a trace and know each other by the envelope's trace field, the *place* of a span: the ids of a W3C
trace parent (https://www.w3.org/TR/trace-context/) as bytes, 16 of the trace and 8 of the span. The callee's span has the
span id of the caller's with its first bit turned over, so that nothing has to be made up for it. Times are the worker's own
clock's; `telemetry.clocks` brings those of several workers together.

    caller   BEGUN -- pickling -- WRITTEN -- waiting to be sent -- SENT ... ANSWERED -- unpickling -- ENDED
    callee                                     ARRIVED -- queued -- STARTED -- unpickling -- READ -- running -- RAN
                                               -- pickling -- REPLIED

While a call is under way its span is a list, in the envelope's `span`, into which whoever handles the call writes the
time: `envelope.span[SENT] = clock()`, in seconds. The clock is the one that deadlines are on, so that a time that is known
for their sake need not be read again. A small call between processes of one host takes 100 microseconds, and what a trace
adds to it is mostly code and memory that are not in the processor's caches: a method call for each of nine points was a
third of its cost, and one to end each span a fifth. So a span has ended when its last time is written, and what has ended
is swept up now and then; the methods for calls here are written out, and what can be worked out when the trace ends is.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import get_ident
from typing import Any, Final, Protocol

from zrpc.clock import Clock, monotonic, to_ns
from zrpc.errors import FrameError
from zrpc.wire.envelope import Envelope, Kind

CALL: Final = "call"
REMOTE: Final = "remote"
"""A call that makes a remote value: it ends when it is accepted, long before the value is there."""
SERVED: Final = "served"
MADE: Final = "made"
"""A served call that makes a value: it ends with that."""
BLOCK: Final = "block"
EVENT: Final = "event"

BEGUN, WRITTEN, SENT, ANSWERED, ENDED = range(5)
"""Indices into the times of a call; 0 there: it did not come to that."""
ARRIVED, STARTED, READ, RAN, REPLIED = range(5)
"""Indices into the times of a call that is served. Its span begins when it is taken up: it knows when it arrived."""
TIMES: Final = {CALL: 5, REMOTE: 5, SERVED: 5, MADE: 5, BLOCK: 2, EVENT: 1}
"""How many times a span has."""

CAPACITY: Final = 65_536
"""Spans that a worker keeps; the oldest are dropped. About 40 MB."""

SWEEP: Final = 512
"""Spans of calls between two looks which of them have ended."""

SPAN_ID: Final = 16
"""Where the span id begins in a place."""

Row = tuple[Any, ...]
"""A span as plain values: the fields of `Span` in their order."""
Open = list[Any]
"""A span as it is recorded: its five times (s), kind, name, place, its parent's, peer, first and last thread, note.
The kind of a call is that of its message, and minus that at its callee."""
_KIND, _NAME, _PLACE, _PARENT, _PEER, THREAD, LAST_THREAD, NOTE = range(5, 13)


class Span:
    """One thing that took time. `times` are in ns; `thread` is the one it began on, and `last_thread` it ended on."""

    __slots__ = ("kind", "last_thread", "name", "note", "parent_id", "peer", "span_id", "thread", "times", "trace_id")

    def __init__(
        self,
        kind: str,
        name: str,
        trace_id: str = "",
        span_id: str = "",
        parent_id: str = "",
        peer: int = -1,
        thread: int = 0,
        last_thread: int = 0,
        times: Sequence[int] = (),
        note: str = "",
    ) -> None:
        self.kind = kind
        self.name = name
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.peer = peer
        self.thread = thread
        self.last_thread = last_thread
        self.times = tuple(times)
        self.note = note

    def __repr__(self) -> str:
        return f"<Span {self.kind} {self.name} {self.trace_id}/{self.span_id} times={self.times}>"

    def to_row(self) -> Row:
        """As plain values."""
        ids = self.trace_id, self.span_id, self.parent_id
        return (self.kind, self.name, *ids, self.peer, self.thread, self.last_thread, self.times, self.note)


def read_span(row: object) -> Span:
    """A span from plain values. Raises `FrameError`."""
    if not isinstance(row, (list, tuple)) or len(row) != 10:
        raise FrameError("not a span: it has other than 10 fields")
    kind, name, trace_id, span_id, parent_id, peer, thread, last_thread, times, note = row
    if not all(type(text) is str for text in (kind, name, trace_id, span_id, parent_id, note)):
        raise FrameError("not a span: a text is something else")
    if not isinstance(times, (list, tuple)) or len(times) != TIMES.get(kind):
        raise FrameError(f"not a span: a {kind!r} with other than {TIMES.get(kind)} times")
    if not all(type(number) is int for number in (peer, thread, last_thread, *times)):
        raise FrameError("not a span: a number is something else")
    return Span(kind, name, trace_id, span_id, parent_id, peer, thread, last_thread, times, note)


def other_side(place: bytes) -> bytes:
    """The place of a call's span at its callee, from that of the one at its caller."""
    return b"%b%c%b" % (place[:SPAN_ID], place[SPAN_ID] ^ 0x80, place[SPAN_ID + 1 :])


def place_of(envelope: Envelope) -> bytes | None:
    """The place that calls belong to which the function of a call makes; None when that is not traced."""
    if envelope.span is None or envelope.trace is None:
        return envelope.trace
    place: bytes | None = envelope.span[_PLACE]
    return other_side(envelope.trace) if place is None else place


def _finished(row: Sequence[Any]) -> Span:
    """The span that was recorded."""
    kind, parent = row[_KIND], row[_PARENT] or b""
    place = other_side(parent) if row[_PLACE] is None else row[_PLACE]
    if not isinstance(kind, str):
        is_remote = abs(kind) == Kind.REMOTE_CALL
        kind = (REMOTE if is_remote else CALL) if kind > 0 else (MADE if is_remote else SERVED)
    return Span(
        kind,
        row[_NAME],
        place[:SPAN_ID].hex(),
        place[SPAN_ID:].hex(),
        parent[SPAN_ID:].hex(),
        row[_PEER],
        row[THREAD],
        row[LAST_THREAD],
        [to_ns(time) for time in row[: TIMES[kind]]],
        row[NOTE],
    )


class Sink(Protocol):
    """Where spans go besides: it is told of each, and gives it its place."""

    def begin(self, kind: str, name: str, peer: int, parent: bytes | None) -> tuple[Any, bytes]:
        """A span begins in another one (its place) or by itself: what `end` is given, and its own place."""

    def end(self, handle: Any, span: Span) -> None:
        """It has ended."""


class Session:
    """One who takes a trace: since when (ns), how many spans had ended then, and until when (s, on the tracer's clock)."""

    __slots__ = ("count", "owner", "since", "until")

    def __init__(self, owner: int, since: int, count: int, until: float | None) -> None:
        self.owner = owner
        self.since = since
        self.count = count
        self.until = until


_MIDDLES: Final = tuple(bytes((number, number)) for number in range(0x80))
"""Where trace id and span id meet in a place. The first bit of the span id is the callee's."""


def _make_places(chance: random.Random) -> Iterator[bytes]:
    """Places of spans without a parent, for ever. Safe to use from any thread.

    The end of the trace id and the beginning of the span id are counted, and are beside each other: so they are made by the
    hundred, of three parts each.
    """
    trace, first = chance.randbytes(8), chance.getrandbits(56)

    def make(number: int) -> list[bytes]:
        batch = (number % (1 << 56)).to_bytes(7, "big")
        head = trace + batch
        return [head + middle + batch for middle in _MIDDLES]

    return itertools.chain.from_iterable(map(make, itertools.count(first)))


class _Local(threading.local):
    place: bytes | None = None
    """The place of the block of the program that this thread is in."""


class Tracer:
    """Records the spans of one agent. Safe to use from any thread.

    `find_place` tells the place of the call whose function this thread runs.
    """

    __slots__ = (
        "_clock",
        "_ended",
        "_find_place",
        "_fresh",
        "_handles",
        "_has_blocks",
        "_is_plain",
        "_local",
        "_lock",
        "_places",
        "_rows",
        "_sessions",
        "_sweep_at",
        "_sweeping",
        "_threads",
        "_until",
        "is_on",
        "sink",
    )

    def __init__(
        self,
        capacity: int = CAPACITY,
        clock: Clock = monotonic,
        find_place: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self.is_on = False
        self._find_place = find_place
        self.sink: Sink | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=capacity)
        self._fresh: deque[Open] = deque(maxlen=capacity)
        """Spans of calls, among them those that have not ended."""
        self._sweep_at = SWEEP
        self._ended = 0
        self._handles: dict[bytes, Any] = {}  # of the sink's, by place
        self._sessions: dict[str, Session] = {}
        self._until: float | None = None
        self._is_plain = True
        """Nothing has to be looked at when a call begins: no sink, no end of a session, no block of the program."""
        self._threads: dict[int, str] = {}
        self._has_blocks = False  # never taken back: it only says that threads are to be asked
        self._local = _Local()
        self._places = _make_places(random.Random())  # not the program's, which may be seeded

    # ------------------------------------------------------------------------------------ on and off

    def start(self, token: str, owner: int = -1, seconds: float | None = None) -> None:
        """Record for one more session, until `stop`, or its owner is lost, or (if given) for so many seconds."""
        until = None if seconds is None else self._clock() + seconds
        with self._lock:
            self._sessions[token] = Session(owner, to_ns(self._clock()), self._ended, until)
            self._look()
        self.threads()

    def stop(self, token: str) -> tuple[list[Span], int]:
        """End a session: its spans, and how many were dropped because there were too many."""
        with self._lock:
            self._sweep()
            rows = list(self._rows)
            session = self._sessions.pop(token, None)
            self._look()
            if session is None:
                return [], 0
            ended = self._ended - session.count
        spans = [_finished(row) for row in rows if to_ns(row[0]) >= session.since]
        return spans, max(0, ended - len(rows))

    def lose(self, owner: int) -> None:
        """A worker is gone, and the sessions that it began with it."""
        with self._lock:
            for token in [token for token, session in self._sessions.items() if session.owner == owner]:
                del self._sessions[token]
            self._look()

    def _look(self) -> None:
        """The sessions have changed: record if there is one. With the lock held."""
        self._until = min((s.until for s in self._sessions.values() if s.until is not None), default=None)
        self._is_plain = self._until is None and self.sink is None and not self._has_blocks
        self.is_on = bool(self._sessions)
        if not self.is_on:
            self._rows.clear()
            self._fresh.clear()
            self._handles.clear()

    def _expire(self) -> None:
        """End the sessions whose time is over."""
        now = self._clock()
        with self._lock:
            for token in [t for t, s in self._sessions.items() if s.until is not None and s.until < now]:
                del self._sessions[token]
            self._look()

    def threads(self) -> dict[int, str]:
        """Names of the threads of this process by number, also of those that ended while a trace was taken."""
        for thread in threading.enumerate():
            if thread.ident is not None:
                self._threads[thread.ident] = thread.name
        return dict(self._threads)

    # ------------------------------------------------------------------------------------ calls

    def begin(self, envelope: Envelope, name: str, peer: int, is_inside: bool = True) -> None:
        """A call begins at its caller: in a block, or in the function of another one (`is_inside`: there may be one), or by
        itself."""
        parent = self._find_place() if is_inside else None
        if self._is_plain:
            place = next(self._places)
            if parent is not None:
                place = parent[:SPAN_ID] + place[SPAN_ID:]
        else:
            parent, place = self._look_around(envelope, name, peer, parent)
        thread = get_ident()
        envelope.trace = place
        envelope.span = row = [
            self._clock(), 0.0, 0.0, 0.0, 0.0, envelope.kind, name, place, parent, peer, thread, thread, ""
        ]  # fmt: skip
        fresh = self._fresh
        fresh.append(row)
        if len(fresh) > self._sweep_at:
            self._sweep()

    def _look_around(
        self, envelope: Envelope, name: str, peer: int, parent: bytes | None
    ) -> tuple[bytes | None, bytes]:
        """As `begin`, minding whatever there is: the place of the call's parent, and its own."""
        until = self._until  # once: another thread may end the session meanwhile
        if until is not None and until < self._clock():
            self._expire()
        return self._enter(
            REMOTE if envelope.kind == Kind.REMOTE_CALL else CALL, name, peer, self._local.place or parent
        )

    def _enter(self, kind: str, name: str, peer: int, parent: bytes | None) -> tuple[bytes | None, bytes]:
        """The places of the parent of a span that begins, and its own."""
        if self.sink is not None:
            return parent, self._ask_sink(kind, name, peer, parent)
        place = next(self._places)
        return parent, place if parent is None else parent[:SPAN_ID] + place[SPAN_ID:]

    def end(self, row: Open, note: str = "") -> None:
        """A call has ended, on whichever side and in whichever thread this is. `note` is the type of its error, if any.

        What succeeds writes its last time itself.
        """
        row[NOTE] = note
        row[LAST_THREAD] = get_ident()
        row[ENDED] = self._clock()
        if self.sink is not None:
            self.tell(row)

    def serve(self, envelope: Envelope, name: str, arrived: float, began: float) -> None:
        """A call that is traced is taken up by this thread; it arrived, and was taken up, at these times of the clock."""
        if self.is_on:
            parent, sender, place, thread = envelope.trace, envelope.sender, None, get_ident()
            if self.sink is not None:
                kind = MADE if envelope.kind == Kind.REMOTE_CALL else SERVED
                place = self._ask_sink(kind, name, sender, parent)
            envelope.span = row = [
                arrived, began, 0.0, 0.0, 0.0, -envelope.kind, name, place, parent, sender, thread, thread, ""
            ]  # fmt: skip
            fresh = self._fresh
            fresh.append(row)
            if len(fresh) > self._sweep_at:
                self._sweep()

    def _sweep(self) -> None:
        """Keep what has ended, and look again when there is twice as much of what has not."""
        with self._sweeping:
            fresh = self._fresh
            taken = [fresh.popleft() for _ in range(len(fresh))]
            ended = [row for row in taken if row[ENDED]]
            if len(ended) < len(taken):
                known = set(map(id, ended))
                fresh.extend(row for row in taken if id(row) not in known)
            self._rows.extend(map(tuple, ended))
            self._ended += len(ended)
            self._sweep_at = 2 * len(fresh) + SWEEP

    def _ask_sink(self, kind: str, name: str, peer: int, parent: bytes | None) -> bytes:
        assert self.sink is not None
        handle, place = self.sink.begin(kind, name, peer, parent)
        self._handles[place] = handle
        return place

    def tell(self, row: Open) -> None:
        """Tell the sink, if there is one, that a span has ended."""
        handle = self._handles.pop(row[_PLACE], None)
        if handle is not None and self.sink is not None:
            self.sink.end(handle, _finished(row))

    # ------------------------------------------------------------------------------------ whatever else

    def span(self, name: str) -> AbstractContextManager[None]:
        """A context manager: a named block of the program, in which calls and blocks become its children."""
        return self._block(name) if self.is_on else nullcontext()

    @contextmanager
    def _block(self, name: str) -> Iterator[None]:
        outer, begun = self._local.place, self._clock()
        parent, place = self._enter(BLOCK, name, -1, outer or self._find_place())
        thread = get_ident()
        row: Open = [begun, 0.0, 0.0, 0.0, 0.0, BLOCK, name, place, parent, -1, thread, thread, ""]
        self._local.place = place
        self._has_blocks, self._is_plain = True, False
        try:
            yield
        except BaseException as failure:
            row[NOTE] = type(failure).__name__
            raise
        finally:
            self._local.place = outer
            row[1] = self._clock()
            self._keep(row)

    def mark(self, envelope: Envelope) -> None:
        """Have a message that is no span of its own carry the place that it comes from, or one of its own."""
        if self.is_on:
            envelope.trace = self._local.place or self._find_place() or next(self._places)

    def event(self, name: str, about: object = "") -> None:
        """Something that took no time."""
        if self.is_on:
            thread = get_ident()
            self._keep([self._clock(), 0.0, 0.0, 0.0, 0.0, EVENT, name, b"", None, -1, thread, thread, str(about)])

    def _keep(self, row: Open) -> None:
        self._rows.append(tuple(row))
        self._ended += 1
        if self.sink is not None:
            self.tell(row)
