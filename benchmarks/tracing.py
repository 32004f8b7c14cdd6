"""What tracing costs: `python -m benchmarks.tracing [--calls 300] [--rounds 40]`.

One client, one server, both traced and not, in turn in the same processes. The ratio is that of the medians of a round with
tracing to the round without it that came just before; what is printed is the median of those ratios.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

import zrpc
from benchmarks.functions import script_add, small_tensors
from benchmarks.systems.base import CLIENT, SERVER, Meeting
from benchmarks.systems.zrpc import Zrpc
from zrpc.runtime.context import current_agent

DEADLINE = 120.0


def serve(meeting: Meeting, end: Connection) -> None:
    """The server's process."""
    system = Zrpc()
    system.join(SERVER, meeting)
    end.poll(DEADLINE)
    system.leave()


def time_calls(calls: int) -> list[float]:
    """Microseconds that each of some calls took."""
    args = small_tensors()
    taken = []
    for _ in range(calls):
        begun = time.perf_counter()
        zrpc.rpc_sync(SERVER, script_add, args=args)
        taken.append((time.perf_counter() - begun) * 1e6)
    return taken


def burst(calls: int) -> list[float]:
    """Microseconds for each of some calls, all under way at once; one number."""
    args = small_tensors()
    begun = time.perf_counter()
    futures = [zrpc.rpc_async(SERVER, script_add, args=args) for _ in range(calls)]
    for future in futures:
        future.wait()
    return [(time.perf_counter() - begun) / calls * 1e6]


def compare(name: str, measure: Callable[[int], list[float]], calls: int, rounds: int, path: Path) -> None:
    """Print one row: off, on, and the ratio."""
    off, on, ratios = [], [], []
    for number in range(rounds):
        found = {}
        for traced in (False, True) if number % 2 else (True, False):
            with zrpc.trace(path) if traced else nullcontext():
                assert current_agent().tracer.is_on == traced
                found[traced] = statistics.median(measure(calls))
        off.append(found[False])
        on.append(found[True])
        ratios.append(found[True] / found[False])
    low, _, high = statistics.quantiles(ratios, n=4)
    print(
        f"{name}: {statistics.median(off):.0f} us off, {statistics.median(on):.0f} us on, "
        f"ratio {statistics.median(ratios):.3f} (middle half: {low:.3f} to {high:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.tracing", description="Measure what tracing costs.")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    system = Zrpc()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder, system.meet(Path(folder)) as meeting:
        process = context.Process(target=serve, args=(meeting, theirs))
        process.start()
        theirs.close()
        try:
            system.join(CLIENT, meeting)
            time_calls(2000)
            path = Path(folder) / "trace.json"
            compare("sync call", time_calls, given.calls, given.rounds, path)
            compare("calls all at once", burst, given.calls, given.rounds, path)
            system.leave()
        finally:
            ours.close()
            process.join(DEADLINE)


if __name__ == "__main__":
    main()
