"""The spans of a whole cluster as one file that Perfetto and Chrome show.

One rule: what is drawn on a thread nests. Whatever does not (a call that is under way while its thread does other things)
is drawn as an asynchronous event of its worker.

The format is the Trace Event Format of Chrome. Each worker is a process there, with its id as the number. A call is an
asynchronous event of its caller's worker (`cat` call), with its parts in it, from pickling to unpickling; beside that, what
its thread did for it, and at the callee the thread that ran it. An arrow goes from the one to the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from zrpc.telemetry.trace import (
    ANSWERED,
    ARRIVED,
    BEGUN,
    BLOCK,
    CALL,
    ENDED,
    EVENT,
    MADE,
    RAN,
    READ,
    REMOTE,
    REPLIED,
    SENT,
    SERVED,
    STARTED,
    WRITTEN,
    Span,
)

PICKLING: Final = "pickling"
WAITING: Final = "waiting to be sent"
WIRE: Final = "on the wire"
QUEUED: Final = "queued at the callee"
UNPICKLING: Final = "unpickling"
RUNNING: Final = "running"
ANSWERING: Final = "pickling the result"
BACK: Final = "coming back"
READING: Final = "unpickling the result"
AWAY: Final = "away"
"""The time between sending and the answer, when the callee has told nothing."""
PHASES: Final = (PICKLING, WAITING, WIRE, QUEUED, UNPICKLING, RUNNING, ANSWERING, BACK, READING)
"""The parts of a call, in their order."""

SLACK_US: Final = 1e-3
"""A nanosecond, the grain of all times: sums of floats differ by less."""

Event = dict[str, Any]


@dataclass(frozen=True)
class WorkerTrace:
    """What one worker recorded, and what is known of its clock."""

    name: str
    id: int
    spans: Sequence[Span] = ()
    threads: Mapping[int, str] = field(default_factory=dict)
    ahead_ns: float = 0.0
    """How far its clock is ahead of the reference."""
    error_ns: float = 0.0
    drift: float = 0.0
    """How much faster it runs than the reference: 1e-6 gains a microsecond a second, from `since_ns` on."""
    since_ns: float = 0.0
    dropped: int = 0

    def to_reference(self, time_ns: float) -> int:
        """A time on this worker's clock, on the reference's (ns)."""
        return round(time_ns - self.ahead_ns - self.drift * (time_ns - self.since_ns))


class _Drawing:
    """Times in microseconds since the origin, on the reference's clock."""

    def __init__(self, workers: Iterable[WorkerTrace], origin_ns: float) -> None:
        self.workers = {worker.id: worker for worker in workers}
        self.origin_ns = origin_ns
        self.served = {
            span.parent_id: (worker, span)
            for worker in self.workers.values()
            for span in worker.spans
            if span.kind in (SERVED, MADE)
        }
        self.events: list[Event] = []

    def at(self, worker: WorkerTrace, time_ns: int) -> float:
        return (worker.to_reference(time_ns) - self.origin_ns) / 1e3


def draw(workers: Sequence[WorkerTrace], origin_ns: float, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The whole file, as JSON values. Times in it count from `origin_ns` on the reference's clock."""
    drawing = _Drawing(workers, origin_ns)
    slices: list[Event] = []
    for worker in workers:
        drawing.events += _names(worker)
        for span in worker.spans:
            if span.kind in (CALL, REMOTE):
                slices += _draw_call(drawing, worker, span)
            elif span.kind in (SERVED, MADE):
                slices += _draw_served(drawing, worker, span)
            elif span.kind == BLOCK:
                slices.append(_block(drawing, worker, span))
            elif span.kind == EVENT:
                drawing.events.append(_instant(drawing, worker, span))
    drawing.events += nest(slices)
    drawing.events.sort(key=lambda event: (event.get("ts", -1.0), -event.get("dur", 0.0)))
    return {"traceEvents": drawing.events, "displayTimeUnit": "ms", "otherData": dict(metadata)}


def _names(worker: WorkerTrace) -> list[Event]:
    def meta(name: str, tid: int, args: Event) -> Event:
        return {"ph": "M", "name": name, "pid": worker.id, "tid": tid, "args": args}

    return [
        meta("process_name", 0, {"name": worker.name}),
        meta("process_sort_index", 0, {"sort_index": worker.id}),
        *(meta("thread_name", ident, {"name": name}) for ident, name in sorted(worker.threads.items())),
    ]


# ------------------------------------------------------------------------------------------- a call


def split_call(
    caller: WorkerTrace, call: Span, callee: WorkerTrace | None, served: Span | None
) -> list[tuple[str, int, int]]:
    """The parts of a call: (name, from, to) in ns on the reference's clock, one after the other, without a gap.

    A part that a clock's error would make negative is empty. A call that has no answer ends where it was last seen.
    """
    times = [caller.to_reference(time) if time else 0 for time in call.times]
    points = [(PICKLING, times[WRITTEN]), (WAITING, times[SENT])]
    if served is None or callee is None:
        points += [(AWAY, times[ANSWERED])]
    else:
        there = [callee.to_reference(time) if time else 0 for time in served.times]
        points.append((WIRE, there[ARRIVED]))
        if call.kind == CALL:
            points += [(QUEUED, there[STARTED]), (UNPICKLING, there[READ]), (RUNNING, there[RAN])]
            points += [(ANSWERING, there[REPLIED])]
        points.append((BACK, times[ANSWERED]))
    points.append((READING, times[ENDED]))
    parts = []
    last, end = times[BEGUN], times[ENDED]
    for name, until in points:
        if until:
            until = min(max(until, last), end)
            parts.append((name, last, until))
            last = until
    return parts


def _draw_call(drawing: _Drawing, worker: WorkerTrace, call: Span) -> list[Event]:
    callee, served = drawing.served.get(call.span_id, (None, None))
    parts = split_call(worker, call, callee, served)
    to = drawing.workers.get(call.peer)
    args = {
        "to": str(call.peer) if to is None else to.name,
        "trace id": call.trace_id,
        "span id": call.span_id,
        **{f"{name} (us)": round((until - since) / 1e3, 3) for name, since, until in parts},
        **({"error": call.note} if call.note else {}),
    }
    title = f"{call.name} -> {args['to']}"
    begun, ended = drawing.at(worker, call.times[BEGUN]), drawing.at(worker, call.times[ENDED])
    common = {"cat": "call", "id": call.span_id, "pid": worker.id, "tid": call.thread}
    drawing.events.append({**common, "ph": "b", "name": title, "ts": begun, "args": args})
    for name, since, until in parts:
        since_us, until_us = ((time - drawing.origin_ns) / 1e3 for time in (since, until))
        drawing.events.append({**common, "ph": "b", "name": name, "ts": since_us})
        drawing.events.append({**common, "ph": "e", "name": name, "ts": until_us})
    drawing.events.append({**common, "ph": "e", "name": title, "ts": ended})
    sent = drawing.at(worker, call.times[SENT]) if call.times[SENT] else begun
    is_waited_for = call.thread == call.last_thread
    done = ended if is_waited_for else sent
    slices = [_slice(worker, call.thread, "call", title, begun, done, args)]
    if served is not None and callee is not None and served.times[STARTED]:
        arrow = {"cat": "call", "name": "call", "id": call.span_id}
        drawing.events.append({**arrow, "ph": "s", "pid": worker.id, "tid": call.thread, "ts": sent})
        started = max(drawing.at(callee, served.times[STARTED]), sent)
        drawing.events.append({**arrow, "ph": "f", "bp": "e", "pid": callee.id, "tid": served.thread, "ts": started})
    return slices


def _draw_served(drawing: _Drawing, worker: WorkerTrace, served: Span) -> list[Event]:
    arrived, started, read, ran, replied = (drawing.at(worker, time) if time else None for time in served.times)
    caller = drawing.workers.get(served.peer)
    args = {
        "from": str(served.peer) if caller is None else caller.name,
        "trace id": served.trace_id,
        "span id": served.span_id,
        **({"error": served.note} if served.note else {}),
    }
    if arrived is not None and started is not None:
        common = {
            "cat": "queue",
            "id": served.span_id,
            "pid": worker.id,
            "tid": served.thread,
            "name": f"queued: {served.name}",
        }
        drawing.events.append({**common, "ph": "b", "ts": arrived, "args": args})
        drawing.events.append({**common, "ph": "e", "ts": started})
    if started is None or replied is None:
        return []
    slices = [_slice(worker, served.thread, "served", served.name, started, replied, args)]
    points = [(UNPICKLING, started, read), (RUNNING, read, ran)]
    if served.kind == SERVED:
        points.append((ANSWERING, ran, replied))
    for name, since, until in points:
        if since is not None and until is not None:
            slices.append(_slice(worker, served.thread, "served", name, since, until, {"of": served.span_id}))
    return slices


def _block(drawing: _Drawing, worker: WorkerTrace, span: Span) -> Event:
    since, until = (drawing.at(worker, time) for time in span.times)
    args = {"trace id": span.trace_id, "span id": span.span_id, **({"error": span.note} if span.note else {})}
    return _slice(worker, span.thread, "block", span.name, since, until, args)


def _instant(drawing: _Drawing, worker: WorkerTrace, span: Span) -> Event:
    return {
        "ph": "i",
        "s": "t",
        "cat": "event",
        "name": span.name,
        "pid": worker.id,
        "tid": span.thread,
        "ts": drawing.at(worker, span.times[0]),
        "args": {"what": span.note},
    }


def _slice(worker: WorkerTrace, thread: int, cat: str, name: str, since: float, until: float, args: Event) -> Event:
    return {
        "ph": "X",
        "cat": cat,
        "name": name,
        "pid": worker.id,
        "tid": thread,
        "ts": since,
        "dur": max(0.0, until - since),
        "args": args,
    }


def nest(slices: Iterable[Event]) -> list[Event]:
    """The slices as they can be drawn: one that overlaps the one that it begins in becomes an asynchronous event."""
    drawn: list[Event] = []
    open_until: dict[tuple[int, int], list[float]] = {}
    for event in sorted(slices, key=lambda event: (event["ts"], -event["dur"])):
        stack = open_until.setdefault((event["pid"], event["tid"]), [])
        end = event["ts"] + event["dur"]
        while stack and stack[-1] <= event["ts"] + SLACK_US:
            stack.pop()
        if stack and end > stack[-1] + SLACK_US:
            args = event["args"]
            common = {key: event[key] for key in ("cat", "name", "pid", "tid")}
            common["id"] = args.get("span id") or args.get("of", "")
            drawn.append({**common, "ph": "b", "ts": event["ts"], "args": args})
            drawn.append({**common, "ph": "e", "ts": end})
        else:
            stack.append(end)
            drawn.append(event)
    return drawn
