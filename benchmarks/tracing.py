"""What tracing costs: `python -m benchmarks.tracing [--calls 200] [--pairs 300]`.

One client, one server, in turn traced and not, in short blocks of calls: off, on, on, off, and so on. A pair is a block
with tracing and the one without it beside it, some tens of milliseconds apart: what else the machine does weighs on both.
What is printed is the median of the pairs' ratios, with the interval that the medians of 2,000 samples drawn from them
fall into in 95 of 100 cases (a bootstrap), and the same for the ratio of the blocks' means, garbage collections and all.
Two runs differ by more than that says, by about 1 %: where a process has its memory matters. Take the median of some runs.

Nothing is fetched or drawn between blocks; tracing is switched on and off by the questions that `zrpc.trace` asks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import zrpc
from benchmarks.functions import script_add, small_tensors
from benchmarks.systems.base import CLIENT, SERVER, Meeting
from benchmarks.systems.zrpc import Zrpc
from zrpc.runtime.context import current_agent
from zrpc.runtime.futures import Future, complete

DEADLINE = 120.0
RANKS = {SERVER: 0, CLIENT: 1}
WARM = 20
"""Calls after each switch that are not counted."""

Measure = Callable[[int], tuple[float, float]]
"""Makes so many calls: microseconds that a typical one took, and the mean."""


def serve(meeting: Meeting, end: Connection) -> None:
    """The server's process."""
    system = Zrpc()
    system.join(SERVER, RANKS, meeting)
    end.poll(DEADLINE * 10)
    system.leave()


def one_by_one(calls: int) -> tuple[float, float]:
    """Synchronous calls."""
    args = small_tensors()
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        zrpc.rpc_sync(SERVER, script_add, args=args)
        taken.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(taken), statistics.fmean(taken)


def all_at_once(calls: int) -> tuple[float, float]:
    """Calls that are all under way at once; there is only a mean."""
    args = small_tensors()
    begun = time.perf_counter()
    futures = [zrpc.rpc_async(SERVER, script_add, args=args) for _ in range(calls)]
    for future in futures:
        future.wait()
    mean = (time.perf_counter() - begun) / calls * 1e6
    return mean, mean


def switch(is_on: bool) -> None:
    """Have both sides record, or not."""
    agent = current_agent()
    for member in agent.members():
        peer = agent.peers.find_life((member.id, member.incarnation))
        assert peer is not None
        questions: list[dict[str, Any]] = [{"do": "start"}] if is_on else [{"do": "stop"}, {"do": "forget"}]
        for question in questions:
            future: Future[dict[str, Any]] = Future()

            def done(value: Any, error: BaseException | None, future: Future[dict[str, Any]] = future) -> None:
                complete(future, value, error)

            agent.caller.inspect(peer, {"what": "trace", "token": "benchmark", **question}, DEADLINE, done)
            assert "error" not in future.wait()
    assert agent.tracer.is_on == is_on


def median_and_interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the bounds of 95 of 100 medians of samples."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[1949]


def compare(name: str, measure: Measure, calls: int, pairs: int) -> None:
    """Print one row."""
    typical: dict[bool, list[float]] = {False: [], True: []}
    means: dict[bool, list[float]] = {False: [], True: []}
    for number in range(pairs):
        for traced in (False, True) if number % 2 else (True, False):
            if traced:
                switch(True)
            measure(WARM)
            of_one, mean = measure(calls)
            typical[traced].append(of_one)
            means[traced].append(mean)
            if traced:
                switch(False)
    print(
        f"{name}: {statistics.median(typical[False]):.1f} us off, {statistics.median(typical[True]):.1f} us on", end=""
    )
    for what, found in (("ratio", typical), ("of means", means)):
        ratios = [on / off for on, off in zip(found[True], found[False], strict=True)]
        ratio, low, high = median_and_interval(ratios)
        print(f"; {what} {ratio:.3f} ({low:.3f} to {high:.3f})", end="")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.tracing", description="Measure what tracing costs.")
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=300)
    given = parser.parse_args()
    system = Zrpc()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder, system.meet(Path(folder), {}) as meeting:
        process = context.Process(target=serve, args=(meeting, theirs))
        process.start()
        theirs.close()
        try:
            system.join(CLIENT, RANKS, meeting)
            one_by_one(3000)
            compare("one by one", one_by_one, given.calls, given.pairs)
            compare("all at once", all_at_once, given.calls, given.pairs)
            system.leave()
        finally:
            ours.close()
            process.join(DEADLINE)


if __name__ == "__main__":
    main()
