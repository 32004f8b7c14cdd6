"""Spans as a file for Perfetto: the parts of a call, arrows, and what nests."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zrpc.telemetry.chrome import AWAY, BACK, PHASES, SLACK_US, WIRE, WorkerTrace, draw, nest, split_call
from zrpc.telemetry.trace import BLOCK, CALL, EVENT, MADE, REMOTE, SERVED, Span

TRACE = "a" * 32
MADE_CALL = Span(CALL, "f", TRACE, "1" * 16, "", 2, 10, 10, (1000, 2000, 3000, 10_000, 11_000))
ITS_OTHER_SIDE = Span(SERVED, "f", TRACE, "2" * 16, "1" * 16, 1, 20, 20, (4000, 5000, 6000, 8000, 9000))


def workers(call: Span = MADE_CALL, served: Span | None = ITS_OTHER_SIDE) -> list[WorkerTrace]:
    return [
        WorkerTrace("a", 1, [call], {10: "main"}),
        WorkerTrace("b", 2, [] if served is None else [served], {20: "pool"}),
    ]


def events(drawn: dict[str, Any], ph: str, **fields: Any) -> list[dict[str, Any]]:
    return [e for e in drawn["traceEvents"] if e["ph"] == ph and all(e.get(k) == v for k, v in fields.items())]


def test_a_call_is_split_into_its_parts() -> None:
    a, b = workers()
    assert split_call(a, MADE_CALL, b, ITS_OTHER_SIDE) == [
        (name, 1000 * (i + 1), 1000 * (i + 2)) if i < 5 else (name, *LATER[name]) for i, name in enumerate(PHASES)
    ]


LATER = {
    "running": (6000, 8000),
    "pickling the result": (8000, 9000),
    "coming back": (9000, 10_000),
    "unpickling the result": (10_000, 11_000),
}


def test_the_callees_clock_is_brought_to_the_callers() -> None:
    a, b = workers()
    ahead = Span(SERVED, "f", TRACE, "2" * 16, "1" * 16, 1, 20, 20, tuple(t + 5_000_000 for t in ITS_OTHER_SIDE.times))
    shifted = WorkerTrace("b", 2, [ahead], ahead_ns=5_000_000.0)
    assert split_call(a, MADE_CALL, shifted, ahead) == split_call(a, MADE_CALL, b, ITS_OTHER_SIDE)


def test_a_clock_that_drifts() -> None:
    worker = WorkerTrace("b", 2, ahead_ns=100.0, drift=1e-3, since_ns=1_000_000.0)
    assert worker.to_reference(1_000_000) == 999_900
    assert worker.to_reference(2_000_000) == 1_998_900


def test_a_call_that_its_callee_did_not_record() -> None:
    a, _ = workers()
    assert [(name, until) for name, _, until in split_call(a, MADE_CALL, None, None)][2] == (AWAY, 10_000)


def test_a_call_without_an_answer_ends_where_it_was_seen_last() -> None:
    late = Span(CALL, "f", TRACE, "1" * 16, "", 2, 10, 10, (1000, 2000, 3000, 0, 50_000))
    parts = split_call(workers()[0], late, None, None)
    assert parts[-1][2] == 50_000
    assert AWAY not in [name for name, _, _ in parts]


def test_a_call_that_makes_a_value_ends_when_it_is_accepted() -> None:
    call = Span(REMOTE, "f", TRACE, "1" * 16, "", 2, 10, 30, MADE_CALL.times)
    made = Span(MADE, "f", TRACE, "2" * 16, "1" * 16, 1, 20, 20, (4000, 5000, 6000, 80_000, 90_000))
    parts = split_call(workers()[0], call, workers()[1], made)
    assert [name for name, _, _ in parts][2:4] == [WIRE, BACK]
    assert parts[-1][2] == 11_000


@given(st.lists(st.integers(0, 100), min_size=5, max_size=5), st.lists(st.integers(0, 100), min_size=5, max_size=5))
def test_parts_follow_one_another_whatever_the_clocks_say(here: list[int], there: list[int]) -> None:
    begun, end = min(here), max(here)
    call = Span(CALL, "f", TRACE, "1" * 16, "", 2, 10, 10, (begun + 1, *here[1:4], end + 1))
    served = Span(SERVED, "f", TRACE, "2" * 16, "1" * 16, 1, 20, 20, there)
    parts = split_call(WorkerTrace("a", 1), call, WorkerTrace("b", 2), served)
    assert parts[0][1] == begun + 1
    assert parts[-1][2] == end + 1
    assert all(since <= until for _, since, until in parts)
    assert all(first[2] == second[1] for first, second in itertools.pairwise(parts))


def test_the_file_has_every_part_an_arrow_and_the_names() -> None:
    drawn = draw(workers(), 1000, {"note": 1})
    assert drawn["otherData"] == {"note": 1}
    assert {e["args"]["name"] for e in events(drawn, "M", name="process_name")} == {"a", "b"}
    assert {e["args"]["name"] for e in events(drawn, "M", name="thread_name")} == {"main", "pool"}
    assert [e["name"] for e in events(drawn, "b", cat="call")] == ["f -> b", *PHASES]
    [start], [end] = events(drawn, "s"), events(drawn, "f")
    assert (start["pid"], start["tid"], start["ts"]) == (1, 10, 2.0)
    assert (end["pid"], end["tid"], end["ts"], end["bp"]) == (2, 20, 4.0, "e")
    assert start["id"] == end["id"]
    [whole] = events(drawn, "X", name="f -> b")
    assert (whole["ts"], whole["dur"]) == (0.0, 10.0)
    assert [e["name"] for e in events(drawn, "X", pid=2)] == ["f", "unpickling", "running", "pickling the result"]
    assert whole["args"]["running (us)"] == 2.0


def test_what_does_not_wait_ends_on_its_thread_when_it_is_sent() -> None:
    later = Span(CALL, "f", TRACE, "1" * 16, "", 2, 10, 30, MADE_CALL.times)
    [whole] = events(draw(workers(later), 1000, {}), "X", name="f -> b")
    assert whole["dur"] == 2.0


def test_blocks_and_events() -> None:
    spans = [
        Span(BLOCK, "backward", TRACE, "3" * 16, "", -1, 10, 10, (1000, 5000), "ValueError"),
        Span(EVENT, "RRef created", "", "", "", -1, 10, 10, (2000,), "(0, 1)"),
    ]
    drawn = draw([WorkerTrace("a", 1, spans)], 1000, {})
    [block], [event] = events(drawn, "X"), events(drawn, "i")
    assert (block["name"], block["ts"], block["dur"], block["args"]["error"]) == ("backward", 0.0, 4.0, "ValueError")
    assert (event["name"], event["ts"], event["args"]["what"]) == ("RRef created", 1.0, "(0, 1)")


def piece(since: float, until: float, thread: int = 1) -> dict[str, Any]:
    args = {"span id": "x"}
    return {
        "ph": "X", "cat": "c", "name": "n", "pid": 1, "tid": thread, "ts": since, "dur": until - since, "args": args,
    }  # fmt: skip


def test_what_overlaps_is_drawn_beside_its_thread() -> None:
    drawn = nest([piece(0, 10), piece(2, 5), piece(4, 8), piece(9, 12), piece(9, 12, thread=2)])
    assert [(e["ph"], e["ts"]) for e in drawn] == [
        ("X", 0), ("X", 2), ("b", 4), ("e", 8), ("b", 9), ("e", 12), ("X", 9),
    ]  # fmt: skip


def check_nesting(slices: Sequence[dict[str, Any]]) -> None:
    open_until: dict[Any, list[float]] = defaultdict(list)
    for event in sorted(slices, key=lambda e: (e["ts"], -e["dur"])):
        stack = open_until[event["pid"], event["tid"]]
        while stack and stack[-1] <= event["ts"] + SLACK_US:
            stack.pop()
        assert not stack or event["ts"] + event["dur"] <= stack[-1] + SLACK_US
        stack.append(event["ts"] + event["dur"])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(1, 2))))
def test_what_is_drawn_on_a_thread_nests_and_nothing_is_lost(times: list[tuple[int, int, int]]) -> None:
    drawn = nest(piece(since, since + length, thread) for since, length, thread in times)
    slices = [event for event in drawn if event["ph"] == "X"]
    check_nesting(slices)
    beside = [event for event in drawn if event["ph"] == "b"]
    assert len(slices) + len(beside) == len(times)
