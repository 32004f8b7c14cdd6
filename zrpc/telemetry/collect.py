"""Taking a trace of a whole cluster: switching workers on, comparing their clocks, and fetching what they recorded.

One rule: how a worker is asked is given by whoever takes the trace, so that a worker, a tool and a test can.

Questions of the kind `trace` (see `runtime.inspection`), and their answers:

    {"do": "clock"}                                          {"ns": the worker's clock}
    {"do": "start", "token", "owner", "seconds", "otel"}     {"ns"}
    {"do": "stop", "token"}                                  {"count", "dropped", "threads": [[number, name], ...]}
    {"do": "take", "token", "first", "count"}                {"spans": [row, ...]}
    {"do": "forget", "token"}                                {}
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from zrpc.clock import monotonic_ns, wall
from zrpc.errors import FrameError, ZrpcError
from zrpc.telemetry.chrome import WorkerTrace, draw
from zrpc.telemetry.clocks import ClockBounds, Offset
from zrpc.telemetry.trace import (
    ANSWERED,
    ARRIVED,
    CALL,
    MADE,
    REMOTE,
    REPLIED,
    SENT,
    SERVED,
    Sink,
    Span,
    Tracer,
    read_span,
)
from zrpc.version import __version__

ROUND_TRIPS: Final = 8
"""Questions to each worker about its clock, at the beginning and at the end; the quickest counts."""
PAGE: Final = 4000
"""Spans in one answer; about 1 MB."""
MAX_KEPT: Final = 4
"""Sessions that have ended, and whose spans are still to be fetched."""

COLLECTOR: Final = -1
"""Stands for whoever takes the trace among the workers' ids: its clock is the reference."""

Plain = dict[str, Any]


# ------------------------------------------------------------------------------------------- a worker's side


class TraceDesk:
    """Answers questions of the kind `trace` for one worker."""

    def __init__(self, tracer: Tracer, find_sink: Callable[[], Sink | None]) -> None:
        self._tracer = tracer
        self._find_sink = find_sink
        self._lock = threading.Lock()
        self._taken: OrderedDict[str, list[Span]] = OrderedDict()

    def answer(self, request: Mapping[str, Any]) -> Plain:
        """The answer, or {"error": why not}."""
        do, token = request.get("do"), request.get("token")
        if do == "clock":
            return {"ns": monotonic_ns()}
        if type(token) is not str or not 0 < len(token) <= 64:
            return {"error": "a trace is named by a token of 1 to 64 characters"}
        if do == "start":
            return self._start(token, request)
        if do == "stop":
            return self._stop(token)
        if do == "take":
            return self._take(token, request.get("first"), request.get("count"))
        if do == "forget":
            with self._lock:
                self._taken.pop(token, None)
            return {}
        return {"error": f"cannot {do!r} a trace; ask for clock, start, stop, take or forget"}

    def _start(self, token: str, request: Mapping[str, Any]) -> Plain:
        owner, seconds = request.get("owner", COLLECTOR), request.get("seconds")
        if type(owner) is not int or not (seconds is None or (type(seconds) in (int, float) and seconds > 0)):
            return {"error": "owner is a worker's id, and seconds are more than 0"}
        if request.get("otel") and self._tracer.sink is None:
            self._tracer.sink = self._find_sink()
        self._tracer.start(token, owner, seconds)
        return {"ns": monotonic_ns()}

    def _stop(self, token: str) -> Plain:
        spans, dropped = self._tracer.stop(token)
        with self._lock:
            self._taken[token] = spans
            while len(self._taken) > MAX_KEPT:
                self._taken.popitem(last=False)
        return {"count": len(spans), "dropped": dropped, "threads": list(self._tracer.threads().items())}

    def _take(self, token: str, first: Any, count: Any) -> Plain:
        if type(first) is not int or type(count) is not int or first < 0 or not 0 < count <= PAGE:
            return {"error": f"first is a number from 0, and count one from 1 to {PAGE}"}
        with self._lock:
            spans = self._taken.get(token, [])
        return {"spans": [span.to_row() for span in spans[first : first + count]]}


# ------------------------------------------------------------------------------------------- the taker's side


@dataclass(frozen=True)
class Who:
    """One life of a worker."""

    name: str
    id: int
    incarnation: int
    address: str = ""


@dataclass
class _Known:
    """What was learnt of a worker's clock."""

    who: Who
    trips: list[tuple[int, int, int]] = field(default_factory=list)
    """(asked, its clock, answered): the quickest at the beginning, then the quickest at the end."""


Ask = Callable[[Who, Plain], Plain]
"""Asks a worker, and waits for the answer. Raises a `ZrpcError` when there is none."""


class Collector:
    """Takes one trace. From one thread, but for `add`."""

    def __init__(
        self,
        ask: Ask,
        token: str,
        *,
        taker: str,
        owner: int = COLLECTOR,
        seconds: float | None = None,
        otel: bool = True,
        clock_ns: Callable[[], int] = monotonic_ns,
    ) -> None:
        self._ask = ask
        self._token = token
        self._taker = taker
        self._clock_ns = clock_ns
        self._known: dict[tuple[int, int], _Known] = {}
        self._left_out: list[tuple[str, str]] = []
        self._began_ns = clock_ns()
        self._began_at = wall()
        self.question: Plain = {
            "what": "trace",
            "do": "start",
            "token": token,
            "owner": owner,
            "seconds": seconds,
            "otel": otel,
        }
        """What switches a worker on."""

    def begin(self, workers: Iterable[Who]) -> None:
        """Switch workers on."""
        for who in workers:
            self.add(who)
            try:
                self._known[who.id, who.incarnation].trips += self._measure(who)
                self._checked(who, self.question)
            except ZrpcError as error:
                self._leave_out(who, error)

    def add(self, who: Who) -> None:
        """A worker that is, or is about to be, switched on."""
        self._known.setdefault((who.id, who.incarnation), _Known(who))

    def finish(self) -> Plain:
        """Switch all off, fetch what they have recorded, and draw it. A worker that is gone is left out, and named."""
        traces = []
        for known in list(self._known.values()):
            try:
                traces.append(self._fetch(known))
            except ZrpcError as error:
                self._leave_out(known.who, error)
        aligned, how = self._align(traces)
        return draw(aligned, self._began_ns, self._metadata(aligned, how))

    def _leave_out(self, who: Who, error: BaseException) -> None:
        self._known.pop((who.id, who.incarnation), None)
        self._left_out.append((who.name, str(error)))

    def _checked(self, who: Who, question: Plain) -> Plain:
        answer = self._ask(who, question)
        if "error" in answer:
            raise FrameError(f"worker {who.name!r} cannot be traced: {answer['error']}")
        return answer

    def _measure(self, who: Who) -> list[tuple[int, int, int]]:
        """The quickest of some looks at a worker's clock."""
        trips = []
        for _ in range(ROUND_TRIPS):
            asked = self._clock_ns()
            there = self._checked(who, {"what": "trace", "do": "clock"})["ns"]
            trips.append((asked, int(there), self._clock_ns()))
        return [min(trips, key=lambda trip: trip[2] - trip[0])]

    def _fetch(self, known: _Known) -> WorkerTrace:
        who = known.who
        asked = {"what": "trace", "token": self._token}
        known.trips += self._measure(who)
        said = self._checked(who, {**asked, "do": "stop"})
        spans: list[Span] = []
        while len(spans) < said["count"]:
            page = self._checked(who, {**asked, "do": "take", "first": len(spans), "count": PAGE})["spans"]
            if not page:
                break
            spans += map(read_span, page)
        self._checked(who, {**asked, "do": "forget"})
        threads = {int(number): str(name) for number, name in said["threads"]}
        return WorkerTrace(who.name, who.id, spans, threads, dropped=said["dropped"])

    # ------------------------------------------------------------------------------------ clocks

    def _align(self, traces: list[WorkerTrace]) -> tuple[list[WorkerTrace], str]:
        """The traces with their clocks' offsets."""
        known = {who.who.id: who for who in self._known.values()}
        drifting = [_steady(trace, known[trace.id].trips) for trace in traces]
        bounds: ClockBounds[int] = ClockBounds()
        for trace in drifting:
            for asked, there, back in known[trace.id].trips:
                bounds.round_trip(COLLECTOR, asked, trace.id, trace.to_reference(there), back)
        by_trips = bounds.solve(COLLECTOR, [trace.id for trace in drifting])
        add_calls(bounds, drifting)
        offsets = bounds.solve(COLLECTOR, [trace.id for trace in drifting])
        how = "by the times of all messages" if offsets is not None else "by round trips only: a clock is unsteady"
        offsets = offsets or by_trips or {}
        aligned = [_shift(trace, offsets.get(trace.id, Offset(0.0, float("inf")))) for trace in drifting]
        return aligned, how

    def _metadata(self, traces: list[WorkerTrace], how: str) -> Plain:
        return {
            "zrpc": __version__,
            "taken by": self._taker,
            "began (s since 1970)": self._began_at,
            "clocks": f"those of the workers, brought to that of {self._taker} {how}",
            "workers": {
                trace.name: {
                    "id": trace.id,
                    "clock ahead (us)": round(trace.ahead_ns / 1e3, 3),
                    "give or take (us)": round(trace.error_ns / 1e3, 3) if trace.error_ns < float("inf") else None,
                    "drift (parts per million)": round(trace.drift * 1e6, 3),
                    "spans": len(trace.spans),
                    "spans dropped": trace.dropped,
                }
                for trace in traces
            },
            "left out": dict(self._left_out),
        }


def _shift(trace: WorkerTrace, offset: Offset) -> WorkerTrace:
    return replace(trace, ahead_ns=offset.ahead_ns, error_ns=offset.error_ns)


def _steady(trace: WorkerTrace, trips: list[tuple[int, int, int]]) -> WorkerTrace:
    """With how fast its clock runs, from the first and the last look at it; the same if that is less than their errors."""
    if not trips:
        return trace
    (a1, b1, c1), (a2, b2, c2) = trips[0], trips[-1]
    gained = (b2 - (a2 + c2) / 2) - (b1 - (a1 + c1) / 2)
    error = (c1 - a1) / 2 + (c2 - a2) / 2
    drift = gained / (b2 - b1) if b2 > b1 and abs(gained) > error else 0.0
    return replace(trace, since_ns=float(b1), drift=drift)


def add_calls(bounds: ClockBounds[int], traces: Iterable[WorkerTrace]) -> None:
    """What calls and their replies say about clocks."""
    traces = list(traces)
    served = {span.parent_id: (trace, span) for trace in traces for span in trace.spans if span.kind == SERVED}
    made = {span.parent_id: (trace, span) for trace in traces for span in trace.spans if span.kind == MADE}
    for trace in traces:
        for call in trace.spans:
            if call.kind not in (CALL, REMOTE) or not call.times[SENT]:
                continue
            other, span = (served if call.kind == CALL else made).get(call.span_id, (None, None))
            if other is None or span is None or not span.times[ARRIVED]:
                continue
            sent, arrived = trace.to_reference(call.times[SENT]), other.to_reference(span.times[ARRIVED])
            bounds.message(trace.id, sent, other.id, arrived)
            if call.kind == CALL and call.times[ANSWERED] and span.times[REPLIED]:
                replied, answered = other.to_reference(span.times[REPLIED]), trace.to_reference(call.times[ANSWERED])
                bounds.message(other.id, replied, trace.id, answered)


def write_trace(path: Path, drawn: Plain) -> None:
    """Write a trace, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(drawn), encoding="utf-8")
    part.replace(path)
