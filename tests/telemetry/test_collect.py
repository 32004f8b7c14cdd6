"""Taking a trace, with workers that are desks in this process and clocks that are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from zrpc.errors import WorkerLost
from zrpc.telemetry.collect import PAGE, ROUND_TRIPS, Collector, TraceDesk, Who, write_trace
from zrpc.telemetry.trace import CALL, SERVED, Span, Tracer

A, B = Who("a", 1, 100), Who("b", 2, 200)


def no_sink() -> None:
    return None


class Time:
    """The collector's clock: each look takes 500 ns."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        self.now += 500
        return self.now


class Worker:
    """A worker whose clock is `ahead` of the collector's, and gains `drift` of each ns."""

    def __init__(self, time: Time, ahead: int, drift: float = 0.0, spans: tuple[Span, ...] = ()) -> None:
        self.time = time
        self.ahead = ahead
        self.drift = drift
        self.spans = spans
        self.asked: list[str] = []

    def clock(self, at: int) -> int:
        return at + self.ahead + int(at * self.drift)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        assert question["what"] == "trace"
        self.asked.append(question["do"])
        if question["do"] in ("clock", "start"):
            return {"ns": self.clock(self.time.now + 250)}
        if question["do"] == "stop":
            return {"count": len(self.spans), "dropped": 3, "threads": [[5, "main"]]}
        if question["do"] == "take":
            first = question["first"]
            return {"spans": [list(span.to_row()) for span in self.spans[first : first + question["count"]]]}
        return {}


class Cluster:
    def __init__(self, **workers: Worker) -> None:
        self.workers = workers

    def ask(self, who: Who, question: dict[str, Any]) -> dict[str, Any]:
        if who.name not in self.workers:
            raise WorkerLost(who.name, "it was killed", "asking it")
        return self.workers[who.name].answer(question)


def test_every_worker_is_switched_on_and_off_and_its_spans_are_fetched() -> None:
    time = Time()
    spans = tuple(Span(CALL, "f", "a" * 32, f"{i:016x}", times=(1, 2, 3, 4, 5)) for i in range(PAGE + 1))
    worker = Worker(time, 0, spans=spans)
    collector = Collector(Cluster(a=worker).ask, "t", taker="me", clock_ns=time)
    collector.begin([A])
    assert worker.asked == ["clock"] * ROUND_TRIPS + ["start"]
    drawn = collector.finish()
    assert worker.asked[ROUND_TRIPS + 1 :] == ["clock"] * ROUND_TRIPS + ["stop", "take", "take", "forget"]
    said = drawn["otherData"]["workers"]["a"]
    assert (said["spans"], said["spans dropped"], said["id"]) == (PAGE + 1, 3, 1)


def test_clocks_are_compared_and_their_error_is_told() -> None:
    time = Time()
    cluster = Cluster(a=Worker(time, 0), b=Worker(time, 7_000_000))
    collector = Collector(cluster.ask, "t", taker="me", clock_ns=time)
    collector.begin([A, B])
    said = collector.finish()["otherData"]["workers"]["b"]
    assert said["clock ahead (us)"] == pytest.approx(7000, abs=0.3)
    assert 0 < said["give or take (us)"] <= 0.25
    assert said["drift (parts per million)"] == 0.0


def test_a_call_between_two_workers_narrows_the_error() -> None:
    time = Time()
    made = Span(CALL, "f", "a" * 32, "1" * 16, "", 2, 0, 0, (0, 1, 5_000_000, 5_000_020, 5_000_030))
    served = Span(SERVED, "f", "a" * 32, "2" * 16, "1" * 16, 1, 0, 0, tuple(12_000_000 + t for t in (5, 6, 7, 8, 10)))
    cluster = Cluster(a=Worker(time, 0, spans=(made,)), b=Worker(time, 7_000_000, spans=(served,)))
    collector = Collector(cluster.ask, "t", taker="me", clock_ns=time)
    collector.begin([A, B])
    drawn = collector.finish()
    [whole] = [e for e in drawn["traceEvents"] if e["ph"] == "b" and e["name"] == "f -> b"]
    assert whole["args"]["on the wire (us)"] + whole["args"]["coming back (us)"] == pytest.approx(0.015, abs=2e-3)
    assert whole["args"]["on the wire (us)"] > 0
    assert "all messages" in drawn["otherData"]["clocks"]


def test_a_clock_that_runs_fast_is_noticed() -> None:
    time = Time()
    cluster = Cluster(a=Worker(time, 0, drift=1e-4))
    collector = Collector(cluster.ask, "t", taker="me", clock_ns=time)
    collector.begin([A])
    time.now += 10**9
    said = collector.finish()["otherData"]["workers"]["a"]
    assert said["drift (parts per million)"] == pytest.approx(100, rel=0.01)


def test_clocks_that_make_no_sense_are_compared_by_questions_only() -> None:
    time = Time()
    made = Span(CALL, "f", "a" * 32, "1" * 16, "", 2, 0, 0, (1, 2, 5_000_000, 5_000_020, 5_000_030))
    early = Span(SERVED, "f", "a" * 32, "2" * 16, "1" * 16, 1, 0, 0, (5, 6, 7, 8, 10))
    cluster = Cluster(a=Worker(time, 0, spans=(made,)), b=Worker(time, 0, spans=(early,)))
    collector = Collector(cluster.ask, "t", taker="me", clock_ns=time)
    collector.begin([A, B])
    drawn = collector.finish()
    assert "round trips only" in drawn["otherData"]["clocks"]
    assert drawn["otherData"]["workers"]["b"]["give or take (us)"] <= 0.25


def test_a_worker_that_is_gone_is_left_out_and_named() -> None:
    time = Time()
    cluster = Cluster(a=Worker(time, 0), b=Worker(time, 0))
    collector = Collector(cluster.ask, "t", taker="me", clock_ns=time)
    collector.begin([A, B])
    del cluster.workers["b"]
    said = collector.finish()["otherData"]
    assert list(said["workers"]) == ["a"]
    assert "it was killed" in said["left out"]["b"]


def test_a_worker_that_comes_later_is_in_it() -> None:
    time = Time()
    late = Worker(time, 5_000_000)
    cluster = Cluster(a=Worker(time, 0), b=late)
    collector = Collector(cluster.ask, "t", taker="me", clock_ns=time)
    collector.begin([A])
    collector.add(B)
    said = collector.finish()["otherData"]["workers"]
    assert said["b"]["clock ahead (us)"] == pytest.approx(5000, abs=0.3)


def test_a_worker_that_knows_no_traces_is_left_out() -> None:
    collector = Collector(lambda who, question: {"error": "cannot tell 'trace'"}, "t", taker="me")
    collector.begin([A])
    assert "cannot tell 'trace'" in collector.finish()["otherData"]["left out"]["a"]


# ---------------------------------------------------------------------------------------- the desk


def test_the_desk_records_from_start_to_stop() -> None:
    tracer = Tracer()
    desk = TraceDesk(tracer, no_sink)
    assert desk.answer({"do": "clock"})["ns"] > 0
    assert desk.answer({"do": "start", "token": "t", "owner": 3, "seconds": 5})["ns"] > 0
    assert tracer.is_on
    tracer.event("one")
    tracer.event("two")
    said = desk.answer({"do": "stop", "token": "t"})
    assert (said["count"], said["dropped"], tracer.is_on) == (2, 0, False)
    [row] = desk.answer({"do": "take", "token": "t", "first": 1, "count": 1})["spans"]
    assert row[1] == "two"
    desk.answer({"do": "forget", "token": "t"})
    assert desk.answer({"do": "take", "token": "t", "first": 0, "count": 1}) == {"spans": []}


def test_few_ended_traces_are_kept() -> None:
    tracer = Tracer()
    desk = TraceDesk(tracer, no_sink)
    for number in range(6):
        desk.answer({"do": "start", "token": str(number)})
        tracer.event("e")
        desk.answer({"do": "stop", "token": str(number)})
    kept = [len(desk.answer({"do": "take", "token": str(n), "first": 0, "count": 9})["spans"]) for n in range(6)]
    assert kept == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"do": "start"},
        {"do": "start", "token": 5},
        {"do": "start", "token": "x" * 65},
        {"do": "start", "token": "t", "owner": "me"},
        {"do": "start", "token": "t", "seconds": -1},
        {"do": "take", "token": "t", "first": -1, "count": 1},
        {"do": "take", "token": "t", "first": 0, "count": PAGE + 1},
        {"do": "take", "token": "t"},
        {"do": "dance", "token": "t"},
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_what_does(question: dict[str, Any]) -> None:
    tracer = Tracer()
    assert "error" in TraceDesk(tracer, no_sink).answer(question)
    assert not tracer.is_on


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", {"traceEvents": []})
    assert json.loads((tmp_path / "t.json").read_text()) == {"traceEvents": []}
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
