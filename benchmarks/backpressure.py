"""A producer that is ten times as fast as its consumer: `python -m benchmarks.backpressure [--seconds 60]`.

The producer sends tensors of 256 KiB, and the consumer takes so long for each that ten times as many could be made. The
memory of both is looked at all the while: once calls wait for room, it must stay what it is. Over local connections and
over TCP, blocking and failing when there is no room. Exits with 1 when memory grew on after the first tenth of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import zrpc
from benchmarks.casts import NETWORK, Settings
from benchmarks.footprint import MIB
from benchmarks.harness import PRELOADED
from benchmarks.systems.base import CLIENT, SERVER, Meeting
from benchmarks.systems.zrpc import Zrpc
from zrpc.api import init_rpc
from zrpc.errors import Overloaded
from zrpc.options import AgentOptions
from zrpc.telemetry.process import resident_bytes

ITEM_BYTES = 256 * 1024
CONSUME_SECONDS = 0.005
PRODUCE_SECONDS = CONSUME_SECONDS / 10
LIMIT_BYTES = 32 * MIB
"""Of calls that wait for replies."""
ALLOWED_MIB = 16.0
"""What allocators and caches may still take, or give."""
DEADLINE = 120.0


def consume(item: torch.Tensor) -> int:
    """Take an item, slowly."""
    time.sleep(CONSUME_SECONDS)
    return item.numel()


def memory_of_consumer() -> int:
    return resident_bytes()


@dataclass(frozen=True)
class Report:
    """Memory in MiB: after the first tenth of the time, and the most that was seen after that."""

    way: str
    when_full: str
    offered: int
    taken: int
    producer: tuple[float, float]
    consumer: tuple[float, float]

    @property
    def growth(self) -> float:
        return max(self.producer[1] - self.producer[0], self.consumer[1] - self.consumer[0])

    def __str__(self) -> str:
        return (
            f"{self.way}, {self.when_full}: {self.offered:,} items of 256 KiB offered, {self.taken:,} taken; producer "
            f"{self.producer[0]:.0f} MiB, at most {self.producer[1]:.0f}; consumer {self.consumer[0]:.0f} MiB, at most "
            f"{self.consumer[1]:.0f}; grown by {self.growth:.1f} MiB"
        )


def join(name: str, meeting: Meeting, when_full: str) -> None:
    options = AgentOptions(
        max_pending_bytes=LIMIT_BYTES,
        when_full=when_full,
        num_worker_threads=1,
        lanes=meeting.get("network") != "tcp",
    )
    broker, key_file = meeting["broker"], meeting["key_file"]
    rank = 0 if name == SERVER else 1
    init_rpc(name, rank=rank, world_size=2, broker=broker, key_file=key_file, options=options)


def be_consumer(end: Connection, meeting: Meeting, when_full: str) -> None:
    torch.set_num_threads(1)
    join(SERVER, meeting, when_full)
    with contextlib.suppress(EOFError):
        end.recv()
    os._exit(0)


def be_producer(end: Connection, meeting: Meeting, when_full: str, seconds: float) -> None:
    torch.set_num_threads(1)
    join(CLIENT, meeting, when_full)
    end.send(produce(seconds))
    with contextlib.suppress(EOFError):
        end.recv()
    os._exit(0)


def produce(seconds: float) -> tuple[int, int, tuple[float, float], tuple[float, float]]:
    """Offer items, each a new tensor, without waiting for what becomes of them."""
    started = time.monotonic()
    offered = 0
    first: tuple[float, float] | None = None
    most = 0.0, 0.0
    taken: list[int] = [0]

    def count(future: torch.futures.Future[int]) -> None:
        taken[0] += future.value() > 0

    look = started
    while (now := time.monotonic()) < started + seconds:
        offered += 1
        try:
            call = zrpc.rpc_async(SERVER, consume, args=(torch.full((ITEM_BYTES,), offered % 251, dtype=torch.uint8),))
            call.add_done_callback(count)
        except Overloaded:
            time.sleep(PRODUCE_SECONDS)  # the next item is made meanwhile
        if now >= look:
            look = now + seconds / 50
            found = resident_bytes() / MIB, zrpc.rpc_sync(SERVER, memory_of_consumer) / MIB
            if now < started + seconds / 10:
                continue
            first = first or found
            most = max(most[0], found[0]), max(most[1], found[1])
    assert first is not None
    return offered, taken[0], (first[0], most[0]), (first[1], most[1])


def measure(settings: Settings, when_full: str, seconds: float) -> Report:
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, Zrpc().meet(Path(folder), dict(settings)) as meeting:
        pipes = [context.Pipe(), context.Pipe()]
        processes = [
            context.Process(target=be_consumer, args=(pipes[0][1], meeting, when_full)),
            context.Process(target=be_producer, args=(pipes[1][1], meeting, when_full, seconds)),
        ]
        try:
            for process, (_, theirs) in zip(processes, pipes, strict=True):
                process.start()
                theirs.close()
            if not pipes[1][0].poll(seconds + DEADLINE):
                raise TimeoutError("the producer did not come to an end")
            return Report("tcp" if settings else "local", when_full, *pipes[1][0].recv())
        finally:
            for ours, _ in pipes:
                ours.close()
            for process in processes:
                process.join(10.0)
                process.kill()
                process.join()


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.backpressure", description="See that memory stays flat.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each of the four ways")
    given = parser.parse_args()
    has_grown = False
    for settings in ((), NETWORK):
        for when_full in ("block", "fail"):
            report = measure(settings, when_full, given.seconds)
            is_flat = report.growth <= ALLOWED_MIB
            has_grown = has_grown or not is_flat
            print(f"{report}: {'flat' if is_flat else 'NOT FLAT'}", flush=True)
    return 1 if has_grown else 0


if __name__ == "__main__":
    sys.exit(main())
