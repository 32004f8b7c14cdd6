"""A broker under the load of thousands of workers: `python -m benchmarks.brokerload [--sizes 1000,3000,10000]`.

The workers are simulated: connections that speak the protocol (encrypted, as always), from some processes of this machine.
They connect and say HELLO, as fast as the broker answers, then beat as often as it told them, ask now and then what has
changed (as who looks for a name does) and some of them for everybody, and leave. For each size a fresh broker, in a process
of its own. Its own processor time says what a step costs, whatever else runs. Its times are those for a machine that is too
busy to answer within two seconds: nobody is to be declared dead.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack

from benchmarks.footprint import private_bytes
from benchmarks.workloads.base import processor_seconds, quantile
from zrpc.broker.server import BrokerServer
from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.curve import load_key_file, new_keyring, write_key_file
from zrpc.transport.poller import Poller
from zrpc.transport.router import ZmqTransport
from zrpc.wire.envelope import Kind, unpack
from zrpc.wire.limits import Limits
from zrpc.wire.messages import Beat, Goodbye, Hello, Message, Resolve, seal

TIMES = RegistryOptions.made_of(heartbeat_interval=2.0, death_timeout=60.0, silence_timeout=120.0)
GENERATORS = 4
AHEAD = 8
"""HELLOs of one generator that wait for their answers."""
RESOLVES = 50
"""Of each generator. Each fifth asks for everybody."""
DEADLINE = 600.0
STATISTICS = dict.fromkeys(
    ("calls_served", "calls_made", "calls_failed", "bytes_in", "bytes_out", "busy_seconds"), 123456
)


@dataclass
class Worker:
    """A simulated one."""

    name: str
    link: Any = None
    id: int = -2
    incarnation: int = 0
    asked_at: float = 0.0
    due: float = 0.0


@dataclass
class Generator:
    """The workers of one process."""

    workers: list[Worker]
    poller: Poller
    connect: Callable[[], Any]
    sequence: int = 0
    interval: float = 0.5
    latencies: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    """Times until everybody was known."""
    lost: int = 0
    """Workers that the broker refused or challenged."""

    undrained: list[Worker] = field(default_factory=list)

    def say(self, worker: Worker, message: Message) -> None:
        """Send to the broker."""
        if worker.link.send(seal(message, worker.id, worker.incarnation)):
            self.undrained.append(worker)

    def receive(self, timeout: float) -> Iterator[tuple[Worker, int, Any]]:
        """What has come: who to, its kind, and its body."""
        ready = [source.worker for source in self.poller.wait(0.0 if self.undrained else timeout)]  # type: ignore[attr-defined]
        ready += self.undrained
        self.undrained = []
        for worker in ready:
            while (frames := worker.link.receive()) is not None:
                envelope = unpack(frames, Limits())
                yield worker, envelope.kind, envelope.body
            if worker.link.is_busy:
                self.undrained.append(worker)

    def take(self, worker: Worker, kind: int, body: Any) -> bool:
        """Take a message; True for a WELCOME, or a whole membership."""
        if kind == Kind.WELCOME:
            values = msgpack.unpackb(body)  # the members stay packed
            worker.id, worker.incarnation = values["id"], values["incarnation"]
            self.interval = values["heartbeat_interval"]
            self.sequence = max(self.sequence, values["sequence"])
            self.latencies.append(time.monotonic() - worker.asked_at)
            return True
        if kind == Kind.MEMBERS:
            values = msgpack.unpackb(body)
            self.sequence = max(self.sequence, values["sequence"])
            if values["answer"] and worker.asked_at:
                (self.whole if values["full"] else self.latencies).append(time.monotonic() - worker.asked_at)
                worker.asked_at = 0.0
                return True
        elif kind in (Kind.REFUSED, Kind.CHALLENGE):
            self.lost += 1
        return False

    def beat(self) -> None:
        """Beat for whoever is due."""
        now = time.monotonic()
        for worker in self.workers:
            if worker.incarnation and worker.due <= now:
                worker.due = now + self.interval
                self.say(worker, Beat(self.sequence, False, STATISTICS))


class Source:
    """A link, for a poller: says whose it is."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def fileno(self) -> int:
        return int(self.worker.link.fileno())


def generate(end: Connection, first: int, count: int, address: str, key_file: str) -> None:
    """A generator's process: joins its workers, then beats and asks, then takes leave, each when it is told."""
    with contextlib.suppress(EOFError):
        _generate(end, first, count, address, key_file)


def _generate(end: Connection, first: int, count: int, address: str, key_file: str) -> None:
    transport = ZmqTransport(load_key_file(key_file), "member", broker_heartbeats_ms=TIMES.connection_heartbeats_ms)
    workers = [Worker(f"worker-{first + number}") for number in range(count)]
    generator = Generator(workers, Poller(), lambda: transport.connect(address, "broker"))
    end.send("ready")
    end.recv()
    _join(generator)
    end.send(generator.latencies)
    generator.latencies = []
    seconds = end.recv()
    _live(generator, seconds)
    end.send((generator.latencies, generator.whole, generator.lost))
    end.recv()
    for worker in workers:
        generator.say(worker, Goodbye())
    end.send("gone")
    end.recv()
    transport.close()


def _join(generator: Generator) -> None:
    waiting = iter(generator.workers)
    under_way = done = 0
    last_beat = 0.0
    end = time.monotonic() + DEADLINE
    while done < len(generator.workers) and time.monotonic() < end:
        while under_way < AHEAD and (worker := next(waiting, None)) is not None:
            worker.asked_at = worker.due = time.monotonic()
            worker.link = generator.connect()
            generator.poller.add(Source(worker))  # type: ignore[arg-type]
            number = int(worker.name.partition("-")[2])
            generator.say(worker, Hello(worker.name, number + 1, f"tcp://10.0.0.1:{number % 60_000 + 1}", "worker"))
            under_way += 1
        for worker, kind, body in generator.receive(0.05):
            if generator.take(worker, kind, body):
                worker.asked_at = 0.0
                under_way -= 1
                done += 1
        if time.monotonic() > last_beat + 0.1:
            generator.beat()
            last_beat = time.monotonic()


def _live(generator: Generator, seconds: float) -> None:
    """Beat; and ask what has changed, one after the other."""
    end = time.monotonic() + seconds
    step = len(generator.workers) // RESOLVES or 1
    askers = iter(enumerate(generator.workers[::step]))
    asked: Worker | None = None
    while time.monotonic() < end:
        generator.beat()
        if asked is None:
            number, asked = next(askers, (0, None))
            if asked is not None:
                asked.asked_at = time.monotonic()
                generator.say(asked, Resolve(0 if number % 5 == 2 else generator.sequence))
        for worker, kind, body in generator.receive(0.02):
            if generator.take(worker, kind, body):
                asked = None


def serve(end: Connection, folder: str) -> None:
    """The broker's process: says its processor time and memory whenever it is asked."""
    keyring = new_keyring("load")
    key_file = write_key_file(keyring, Path(folder) / "key")
    transport = ZmqTransport(keyring, "broker", broker_heartbeats_ms=TIMES.connection_heartbeats_ms)
    broker = BrokerServer(transport, "tcp://127.0.0.1:0", cluster="load", options=TIMES)
    broker.start()
    end.send({"broker": broker.address, "key_file": str(key_file)})
    with contextlib.suppress(EOFError):
        while end.recv() is not None:
            end.send((processor_seconds([os.getpid()]), private_bytes()))
    os._exit(0)


@dataclass(frozen=True)
class Report:
    """What a size costs."""

    workers: int
    join_seconds: float
    join_cpu: float
    join_p99: float
    beat_cpu: float
    """Of the broker, per second."""
    resolve_p50: float
    resolve_p99: float
    whole_p99: float
    leave_cpu: float
    memory: float
    lost: int

    def __str__(self) -> str:
        n = self.workers
        return (
            f"{n:,} workers: {n / self.join_seconds:,.0f} joins/s (HELLO to WELCOME p99 {self.join_p99 * 1e3:.0f} ms), "
            f"{self.join_cpu / n * 1e6:,.0f} us of the broker for each; beats take {self.beat_cpu * 100:.0f} % of a core, "
            f"{self.beat_cpu / n * 1e6:,.0f} us/s for each worker; RESOLVE p50 {self.resolve_p50 * 1e3:.0f} ms, "
            f"p99 {self.resolve_p99 * 1e3:.0f} ms, of everybody p99 {self.whole_p99 * 1e3:.0f} ms; "
            f"all leaving: {self.leave_cpu / n * 1e6:,.0f} us for each; "
            f"{self.memory / n:,.0f} bytes of memory a worker; {self.lost} fenced or challenged"
        )


def measure(size: int, seconds: float) -> Report:
    """Join, live, leave."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        broker, theirs = context.Pipe()
        processes = [context.Process(target=serve, args=(theirs, folder))]
        processes[0].start()
        theirs.close()
        ends: list[Connection] = []
        try:
            meeting = _hear(broker)
            for number in range(GENERATORS):
                ours, theirs = context.Pipe()
                first = size * number // GENERATORS
                count = size * (number + 1) // GENERATORS - first
                args = (theirs, first, count, meeting["broker"], meeting["key_file"])
                processes.append(context.Process(target=generate, args=args))
                processes[-1].start()
                theirs.close()
                ends.append(ours)
            return _measure(size, seconds, broker, ends)
        finally:
            for end in (broker, *ends):
                end.close()
            for process in processes:
                process.kill()
                process.join()


def _hear(end: Connection) -> Any:
    if not end.poll(DEADLINE):
        raise TimeoutError("a process of the load said nothing")
    return end.recv()


def _measure(size: int, seconds: float, broker: Connection, ends: list[Connection]) -> Report:
    def tell(what: object) -> list[Any]:
        for end in ends:
            end.send(what)
        return [_hear(end) for end in ends]

    def usage() -> tuple[float, int]:
        broker.send("?")
        used: tuple[float, int] = _hear(broker)
        return used

    for end in ends:
        _hear(end)
    cpu_0, memory_0 = usage()
    started = time.monotonic()
    joins = sorted(latency for found in tell("join") for latency in found)
    join_seconds = time.monotonic() - started
    cpu_1, memory_1 = usage()
    lives = tell(seconds)
    cpu_2, _ = usage()
    resolves = sorted(latency for found, _, _ in lives for latency in found)
    wholes = sorted(latency for _, found, _ in lives for latency in found)
    tell("leave")
    time.sleep(seconds / 2)  # until the broker has handled it
    cpu_3, _ = usage()
    return Report(
        size,
        join_seconds,
        cpu_1 - cpu_0,
        quantile(joins, 0.99),
        (cpu_2 - cpu_1) / seconds,
        quantile(resolves, 0.5),
        quantile(resolves, 0.99),
        quantile(wholes, 0.99),
        cpu_3 - cpu_2,
        memory_1 - memory_0,
        sum(lost for _, _, lost in lives),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.brokerload", description="Measure a broker under load.")
    parser.add_argument(
        "--sizes", type=lambda text: [int(part) for part in text.split(",")], default=[1000, 3000, 10_000]
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of beats")
    given = parser.parse_args()
    print(f"heartbeats each {TIMES.heartbeat_interval} s", flush=True)
    for size in given.sizes:
        print(measure(size, given.seconds), flush=True)


if __name__ == "__main__":
    main()
