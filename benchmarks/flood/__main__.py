"""Calls while somebody floods the ports of the worker and the broker with bad handshakes: what becomes of their latency?

    python -m benchmarks.flood [--rate 10000] [--rounds 5] [--seconds 5] [--local] [--what hello|rubbish]

Phases with and without the flood take turns. In each, one thread calls a small TorchScript function on another worker, over
TCP (with `--local` over the local connections that workers of one host have). The flood goes to the ports of the worker and
of the broker. It comes from another address (127.0.0.2), and from processes on a core of their own where there are two or
more: broker, worker and caller share the others, in both kinds of phases, so that what is compared is the work that the
flood makes for them and not the flooder's own. A third kind of phase is the control: the same flooder, at a port whose
listener has the system drop all that comes. What that does to latencies is the flooder's doing and the machine's: no
listener can do less. So the ratio to it is what the flood costs because it comes to zrpc; the ratio to a quiet phase says
what a user sees. A phase that has its flood's beginning in it says so: "refused" is high there. The exit code is 1 when the
median of the ratios of 99th percentiles to the quiet phase is over 2, and over 2 to the control as well.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import zrpc
from benchmarks.chaos.processes import BROKER_NODE, Node
from benchmarks.flood.flooder import KINDS
from benchmarks.soak.work import SERVER, add
from zrpc.broker.admin import AdminClient
from zrpc.runtime.context import current_agent
from zrpc.transport.curve import load_key_file, new_keyring, write_key_file
from zrpc.transport.doorway import Doorway

SOURCE = "127.0.0.2"
"""The flooder's address."""
FLOODERS = 2
"""Processes that the flood comes from."""


def pin(pid: int, cores: set[int]) -> None:
    """Keep a process, and the threads that it starts from now on, on these cores."""
    os.sched_setaffinity(pid, cores)


def measure(seconds: float) -> list[float]:
    """Latencies of calls, one after the other, in microseconds."""
    tensor = torch.ones(8)
    found = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        zrpc.rpc_sync(SERVER, add, args=(tensor, 1), timeout=30.0)
        found.append((time.perf_counter() - began) * 1e6)
    return found


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def refusals(broker: str, key: str) -> dict[str, Any]:
    """What worker and broker have counted: handshakes that failed."""
    with AdminClient(broker, load_key_file(key)) as admin:
        counted = admin.status(30.0)["refusals"]
    return {"worker": zrpc.rpc_sync(SERVER, refused_here, timeout=30.0), "broker": counted}


def refused_here() -> dict[str, int]:
    return dict(current_agent().transport.refusals())


class Inert:
    """Listeners that cost nobody anything: the system drops whatever the flooder asks for."""

    def __init__(self, count: int) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        self._doorways = [Doorway(listener.fileno()) for listener in self._sockets]
        if not all(doorway.keep_out([ipaddress.ip_address(SOURCE)], 1 << 31) for doorway in self._doorways):
            raise SystemExit("this system has no filters for listening sockets: there is nothing to compare with")
        self.targets = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in self._sockets]

    def close(self) -> None:
        for end in (*self._doorways, *self._sockets):
            end.close()


class Bench:
    """The processes, and the phases."""

    def __init__(self, folder: Path, is_local: bool, rate: float, what: str) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.rate = rate
        self.what = what
        self.flood_cores = set(cores[-1:])
        self.own_cores = set(cores[:-1]) or set(cores)
        pin(0, self.own_cores)
        self.key = key = str(folder / "key")
        write_key_file(new_keyring("flood"), key)
        environment = {**os.environ, "ZRPC_LANES": "on" if is_local else "off"}
        os.environ["ZRPC_LANES"] = environment["ZRPC_LANES"]
        command = [*BROKER_NODE, "serve", "tcp://127.0.0.1:0", key, "first"]
        self.broker = Node("broker", 0, command, str(folder / "broker.log"))
        said = self.broker.wait_for("broker", 60)
        assert said is not None
        self.address = address = said["broker"]
        roles = [sys.executable, "-m", "benchmarks.soak.roles", "server", address, key, "1"]
        self.server = Node("server", 0, roles, str(folder / "server.log"))
        zrpc.init_rpc("caller", broker=address, key_file=key)
        zrpc.wait_for([SERVER], timeout=60)
        worker = next(member.address for member in current_agent().members() if member.name == SERVER)
        self.targets = [worker.removeprefix("tcp://"), address.removeprefix("tcp://")]
        self.inert = Inert(len(self.targets))

    def phase(self, seconds: float, targets: list[str]) -> tuple[list[float], dict[str, float]]:
        """Latencies while these are flooded, and what the flooder did."""
        if not targets:
            return measure(seconds), {}
        command = [sys.executable, "-m", "benchmarks.flood.flooder", *targets, "--rate", str(self.rate / FLOODERS)]
        command += ["--source", SOURCE, "--what", self.what]
        flooders = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(FLOODERS)
        ]
        did: Counter[str] = Counter()
        try:
            for flooder in flooders:
                pin(flooder.pid, self.flood_cores)
            measure(0.5)  # they start
            found = measure(seconds)
            for flooder in flooders:
                did.update(json.loads(flooder.communicate(timeout=30)[0]))
        finally:
            for flooder in flooders:
                flooder.kill()
                flooder.wait()
        did["seconds"] /= FLOODERS  # type: ignore[assignment]
        return found, dict(did)

    def close(self) -> None:
        self.inert.close()
        zrpc.shutdown(timeout=10)
        self.server.end(20)
        self.broker.end(10)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.flood", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=10_000.0, help="bad handshakes a second")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase")
    parser.add_argument("--local", action="store_true", help="over local connections instead of TCP")
    parser.add_argument("--what", choices=KINDS, default="hello", help="what the flooder sends")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zrpc-flood-") as folder:
        bench = Bench(Path(folder), given.local, given.rate, given.what)
        try:
            measure(1.0)
            rounds = []
            for _ in range(given.rounds):
                quiet, _ = bench.phase(given.seconds, [])
                control, _ = bench.phase(given.seconds, bench.inert.targets)
                flooded, did = bench.phase(given.seconds, bench.targets)
                row: dict[str, Any] = {"calls": [len(quiet), len(control), len(flooded)]}
                for part, name in ((0.5, "p50"), (0.99, "p99")):
                    row[f"{name} us"] = [round(percentile(values, part)) for values in (quiet, control, flooded)]
                row["flood a second"] = {how: round(n / did["seconds"]) for how, n in did.items() if how != "seconds"}
                print(json.dumps(row), flush=True)
                rounds.append(row)
            counted = refusals(bench.address, bench.key)
        finally:
            bench.close()
    summary = {
        f"{name}, {what}": round(
            statistics.median(row[f"{name} us"][over] / row[f"{name} us"][under] for row in rounds), 2
        )
        for name in ("p50", "p99")
        for what, over, under in (("control / quiet", 1, 0), ("flooded / quiet", 2, 0), ("flooded / control", 2, 1))
    }
    print(json.dumps({"cores": [sorted(bench.own_cores), sorted(bench.flood_cores)], "ratio": summary, **counted}))
    return int(min(summary["p99, flooded / quiet"], summary["p99, flooded / control"]) > 2.0)


if __name__ == "__main__":
    raise SystemExit(main())
