"""Many workers on one host, each of which calls all others: `python -m benchmarks.many [--workers 64]`.

Says how long they took to meet, how many calls went through, and what memory each of them has for itself.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import systems
from benchmarks.casts import workers as cast_of
from benchmarks.footprint import MIB, private_bytes
from benchmarks.functions import python_add, small_tensors
from benchmarks.harness import PRELOADED
from benchmarks.workloads.base import quantile

PATIENTLY = {"times": "patient"}
DEADLINE = 300.0


@dataclass(frozen=True)
class Report:
    """What came of it."""

    system: str
    workers: int
    join_seconds: float
    calls: int
    call_seconds: float
    grown: list[float]
    """MiB that each has for itself beyond what it had before it joined, sorted."""

    def __str__(self) -> str:
        return (
            f"{self.system}: {self.workers} workers met in {self.join_seconds:.2f} s; {self.calls:,} calls, all to all, "
            f"{self.calls / self.call_seconds:,.0f}/s; a worker has {quantile(self.grown, 0.5):.1f} MiB more than before "
            f"it joined (at most {self.grown[-1]:.1f})"
        )


def take_part(end: Connection, system_name: str, name: str, ranks: Mapping[str, int], meeting: dict[str, str]) -> None:
    """A worker: joins, calls all others when it is told, and says what memory it has."""
    system = systems.find_system(system_name)
    args = small_tensors()
    python_add(*args)
    before = private_bytes()
    end.send("ready")
    rounds = end.recv()
    rpc = system.join(name, ranks, meeting)
    end.send("joined")
    end.recv()
    for _ in range(rounds):
        futures = [rpc.rpc_async(other, python_add, args=args) for other in ranks if other != name]
        for future in futures:
            future.wait()
    end.send("called")
    end.recv()
    end.send((private_bytes() - before) / MIB)
    end.poll(DEADLINE)
    system.leave()
    os._exit(0)


def measure(system_name: str, count: int, rounds: int) -> Report:
    """Start so many workers, and let each of them call every other one `rounds` times."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(PRELOADED)
    names = cast_of(count).servers
    ranks = {name: rank for rank, name in enumerate(names)}
    with (
        tempfile.TemporaryDirectory() as folder,
        systems.find_system(system_name).meet(Path(folder), PATIENTLY) as meeting,
    ):
        ends: list[Connection] = []
        processes = []

        def step(what: object) -> tuple[list[Any], float]:
            started = time.monotonic()
            for end in ends:
                end.send(what)
            return [_hear(end) for end in ends], time.monotonic() - started

        try:
            for name in names:
                ours, theirs = context.Pipe()
                args = (theirs, system_name, name, ranks, meeting)
                processes.append(context.Process(target=take_part, args=args, name=name))
                processes[-1].start()
                theirs.close()
                ends.append(ours)
            for end in ends:
                _hear(end)
            _, join_seconds = step(rounds)
            _, call_seconds = step("call")
            grown, _ = step("memory")
            return Report(system_name, count, join_seconds, rounds * count * (count - 1), call_seconds, sorted(grown))
        finally:
            for end in ends:
                end.close()
            for process in processes:
                process.join(10.0)
                process.kill()
                process.join()


def _hear(end: Connection) -> Any:
    if not end.poll(DEADLINE):
        raise TimeoutError("a worker said nothing")
    return end.recv()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.many", description="Measure many workers on one host.")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5, help="calls of each worker to each other one")
    parser.add_argument("--systems", default=systems.OURS, help="names, with commas between")
    given = parser.parse_args()
    for name in given.systems.split(","):
        print(measure(name, given.workers, given.rounds), flush=True)


if __name__ == "__main__":
    main()
