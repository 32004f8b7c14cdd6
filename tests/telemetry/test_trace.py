"""Spans as a worker records them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from interleaving import at_each_step

from zrpc.clock import monotonic, monotonic_ns, to_ns
from zrpc.errors import FrameError
from zrpc.telemetry.trace import (
    ANSWERED,
    BLOCK,
    CALL,
    ENDED,
    EVENT,
    MADE,
    READ,
    REMOTE,
    REPLIED,
    SENT,
    SERVED,
    SWEEP,
    Span,
    Tracer,
    place_of,
    read_span,
)
from zrpc.wire.envelope import Envelope, Kind, pack, unpack

PARENT = bytes.fromhex("0af7651916cd43dd8448eb211c80319c37ad6b7169203331")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def started(inside: bytes | None = None, **options: Any) -> Tracer:
    """A tracer that is on, of a thread whose function is called `inside` of a trace."""
    tracer = Tracer(find_place=lambda: inside, **options)
    tracer.start("t")
    return tracer


def call(tracer: Tracer, name: str = "f", kind: Kind = Kind.CALL) -> Envelope:
    """A call that is begun and sent."""
    envelope = Envelope(kind, 7)
    tracer.begin(envelope, name, 2)
    assert envelope.span is not None
    envelope.span[SENT] = monotonic()
    return envelope


def end(*envelopes: Envelope) -> None:
    """Calls, on whichever side, are over."""
    for envelope in envelopes:
        assert envelope.span is not None
        envelope.span[ENDED] = monotonic()


def ended(tracer: Tracer, *envelopes: Envelope) -> list[Span]:
    end(*envelopes)
    return tracer.stop("t")[0]


def test_a_call_has_its_times_in_order() -> None:
    tracer = started()
    envelope = call(tracer)
    assert envelope.span is not None
    envelope.span[ANSWERED] = monotonic()
    [span] = ended(tracer, envelope)
    begun, written, sent, answered, end = span.times
    assert 0 < begun <= sent <= answered <= end
    assert written == 0
    assert (span.kind, span.name, span.peer, span.parent_id, span.note) == (CALL, "f", 2, "", "")
    assert span.thread == span.last_thread == threading.get_ident()


def test_the_header_has_a_trace_parent_that_crosses_the_wire() -> None:
    envelope = call(started())
    assert envelope.trace is not None
    assert len(envelope.trace) == 16 + 8
    assert unpack(pack(envelope)).trace == envelope.trace


def test_the_callees_side_is_a_child_of_the_callers() -> None:
    here, there = started(), started()
    envelope = call(here)
    arrived = unpack(pack(envelope))
    there.serve(arrived, "f", monotonic(), monotonic())
    assert arrived.span is not None
    arrived.span[READ] = arrived.span[REPLIED] = monotonic()
    [made], [served] = ended(here, envelope), there.stop("t")[0]
    assert (served.kind, served.trace_id, served.parent_id) == (SERVED, made.trace_id, made.span_id)
    assert served.span_id != made.span_id
    assert place_of(arrived) == bytes.fromhex(served.trace_id + served.span_id)
    assert int(served.span_id, 16) == int(made.span_id, 16) ^ (1 << 63)


def test_a_call_inside_of_a_call_is_its_child() -> None:
    tracer = started(PARENT)
    [span] = ended(tracer, call(tracer))
    assert (span.trace_id, span.parent_id) == (PARENT[:16].hex(), PARENT[16:].hex())


def test_calls_that_make_values_are_told_apart() -> None:
    tracer = started()
    arrived = Envelope(Kind.REMOTE_CALL, 1, trace=PARENT)
    tracer.serve(arrived, "f", monotonic(), monotonic())
    end(arrived)
    assert [span.kind for span in ended(tracer, call(tracer, kind=Kind.REMOTE_CALL))] == [MADE, REMOTE]


def test_ids_are_not_repeated() -> None:
    tracer, other = started(), started()
    spans = [*ended(tracer, *(call(tracer) for _ in range(1000))), *ended(other, *(call(other) for _ in range(1000)))]
    assert len({span.span_id for span in spans}) == len({span.trace_id for span in spans}) == 2000


def test_ids_are_not_repeated_between_threads() -> None:
    tracer = started()
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: found.extend([call(tracer).trace for _ in range(2000)])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(found)) == 8000


def test_a_tracer_that_is_off_records_nothing() -> None:
    tracer = Tracer()
    arrived = Envelope(Kind.CALL, 1, trace=PARENT)
    tracer.serve(arrived, "f", monotonic(), monotonic())
    assert (arrived.span, arrived.trace, tracer.is_on) == (None, PARENT, False)
    assert place_of(arrived) == PARENT
    with tracer.span("block"):
        tracer.event("event")
    tracer.start("t")
    assert tracer.stop("t") == ([], 0)


def test_a_block_is_the_parent_of_what_is_in_it() -> None:
    tracer = started()
    with tracer.span("outer"), tracer.span("inner"):
        made = call(tracer)
    spans = {span.name: span for span in ended(tracer, made)}
    within, outer = spans["inner"], spans["outer"]
    assert (spans["f"].parent_id, within.parent_id, outer.parent_id) == (within.span_id, outer.span_id, "")
    assert len({span.trace_id for span in spans.values()}) == 1
    assert (outer.kind, len(outer.times)) == (BLOCK, 2)


def test_a_block_in_a_call_is_its_child_and_says_how_it_failed() -> None:
    tracer = started(PARENT)
    with pytest.raises(KeyError), tracer.span("block"):
        raise KeyError
    [span] = tracer.stop("t")[0]
    assert (span.parent_id, span.note) == (PARENT[16:].hex(), "KeyError")


def test_an_event() -> None:
    tracer = started()
    tracer.event("RRef created", (1, 2))
    [span] = tracer.stop("t")[0]
    assert (span.kind, span.name, span.note, len(span.times)) == (EVENT, "RRef created", "(1, 2)", 1)


def test_the_oldest_are_dropped_and_counted() -> None:
    tracer = started(capacity=3)
    for number in range(5):
        tracer.event(str(number))
    spans, dropped = tracer.stop("t")
    assert ([span.name for span in spans], dropped) == (["2", "3", "4"], 2)


def test_sessions_get_what_ended_while_they_lasted() -> None:
    tracer = Tracer()
    tracer.start("long")
    tracer.event("first")
    tracer.start("short")
    tracer.event("second")
    assert [span.name for span in tracer.stop("short")[0]] == ["second"]
    assert tracer.is_on
    assert [span.name for span in tracer.stop("long")[0]] == ["first", "second"]
    assert not tracer.is_on
    assert tracer.stop("long") == ([], 0)


def test_a_session_ends_with_its_owner() -> None:
    tracer = Tracer()
    tracer.start("theirs", owner=3)
    tracer.start("ours", owner=4)
    tracer.lose(3)
    assert tracer.is_on
    tracer.lose(4)
    assert not tracer.is_on


def test_a_session_ends_when_its_time_is_over() -> None:
    clock = Clock()
    tracer = Tracer(clock=clock)
    tracer.start("t", seconds=10.0)
    clock.now = 9.0
    call(tracer)
    assert tracer.is_on
    clock.now = 11.0
    call(tracer)
    assert not tracer.is_on


def test_a_call_that_ends_after_the_trace_is_not_kept() -> None:
    tracer = started()
    envelope = call(tracer)
    tracer.stop("t")
    end(envelope)
    tracer.start("t")
    assert tracer.stop("t") == ([], 0)


def test_a_call_that_fails_elsewhere_says_where_and_how() -> None:
    tracer = started()
    envelope = call(tracer)
    assert envelope.span is not None
    thread = threading.Thread(target=tracer.end, args=(envelope.span, "WorkerLost"))
    thread.start()
    thread.join(20)
    [span] = tracer.stop("t")[0]
    assert (span.note, span.thread, span.last_thread) == ("WorkerLost", threading.get_ident(), thread.ident)


def test_a_call_that_has_not_ended_is_left_out() -> None:
    tracer = started()
    done, call_under_way = call(tracer), call(tracer)
    assert [span.span_id for span in ended(tracer, done)] == [(done.trace or b"")[16:].hex()]
    assert call_under_way.span is not None


def test_what_ends_late_is_kept_however_much_has_ended_since() -> None:
    tracer = started()
    late = call(tracer)
    for _ in range(4 * SWEEP):
        end(call(tracer))
    assert len(ended(tracer, late)) == 4 * SWEEP + 1


def test_many_calls_under_way_do_not_stop_what_has_ended_from_being_kept() -> None:
    tracer = started()
    under_way = [call(tracer) for _ in range(3 * SWEEP)]
    for _ in range(3 * SWEEP):
        end(call(tracer))
    assert len(tracer.stop("t")[0]) == 3 * SWEEP
    assert all(envelope.span is not None for envelope in under_way)


def test_calls_that_never_end_do_not_fill_the_memory() -> None:
    tracer = started(capacity=10)
    kept = [call(tracer) for _ in range(30)]
    assert len(ended(tracer, *kept)) == 10


def test_threads_sweep_at_once_and_lose_nothing() -> None:
    tracer = started()

    def make() -> None:
        for _ in range(20 * SWEEP):
            end(call(tracer))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    spans, dropped = tracer.stop("t")
    assert (len(spans), len({span.span_id for span in spans}), dropped) == (80 * SWEEP, 80 * SWEEP, 0)


def test_times_are_those_of_the_workers_clock() -> None:
    before, now, after = monotonic_ns(), to_ns(monotonic()), monotonic_ns()
    assert before - 1000 <= now <= after + 1000


def test_threads_have_names() -> None:
    tracer = Tracer()
    assert tracer.threads()[threading.get_ident()] == threading.current_thread().name


def test_spans_survive_the_wire() -> None:
    tracer = started(PARENT)
    envelope = call(tracer)
    assert envelope.span is not None
    tracer.end(envelope.span, "CallTimeout")
    [span] = tracer.stop("t")[0]
    assert span.note == "CallTimeout"
    row = list(span.to_row())
    assert read_span(row).to_row() == span.to_row()


GOOD = ["call", "f", "", "", "", 1, 2, 2, [1, 2, 3, 4, 5], ""]


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        GOOD[:-1],
        ["other", *GOOD[1:]],
        ["block", *GOOD[1:]],
        [*GOOD[:1], 5, *GOOD[2:]],
        [*GOOD[:5], "1", *GOOD[6:]],
        [*GOOD[:8], [1, 2, 3, 4, "5"], ""],
        [*GOOD[:8], 5, ""],
        [*GOOD[:9], None],
    ],
)
def test_what_is_not_a_span_is_refused(row: object) -> None:
    assert read_span(GOOD).times == (1, 2, 3, 4, 5)
    with pytest.raises(FrameError):
        read_span(row)


def test_a_call_that_begins_while_a_timed_trace_ends() -> None:
    def make() -> tuple[Any, Any]:
        tracer = Tracer()
        tracer.start("one", seconds=60.0)

        def rival() -> None:
            if not tracer._lock.locked():
                tracer.stop("one")

        return lambda: tracer.begin(Envelope(Kind.CALL, 1, 2, 3, 4), "f", 5), rival

    assert sum(1 for _ in at_each_step(make)) > 20
