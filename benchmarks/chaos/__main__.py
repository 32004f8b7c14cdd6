"""Twelve workers under mixed load, and everything that goes wrong in a cluster, at random, for some minutes.

    python -m benchmarks.chaos --minutes 2 [--workers 12] [--seed N] [--no-namespaces]
    python -m benchmarks.chaos --calm --minutes 20 --workers 3      no faults: do memory and descriptors stay flat?

Workers are killed and come again under their names, are stopped (SIGSTOP) and go on, are cut off; the broker is killed and
comes again. In the end the faults stop, the load stops, and it is counted: calls and how they ended, calls that hung,
functions that ran twice, references, descriptors, shared memory and processes that are left. The exit code is 1 when a
promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.chaos.growth import Growth
from benchmarks.chaos.load import NUMBER
from benchmarks.chaos.namespaces import Namespaces, NotPermitted
from benchmarks.chaos.processes import NODE, Node
from zrpc.transport.curve import new_keyring, write_key_file

LEFT = ("owner_rrefs", "user_rrefs", "contexts", "pending_calls")
"""What nothing may be left of in the end."""
OWN_DESCRIPTORS = 60
DESCRIPTORS_PER_PEER = 40
"""For connections, lanes of both ends (up to 8 idle ones each) with their channels of shared memory; those to lives that
are over are closed."""
PAUSE = (0.3, 2.0)
"""Seconds between two faults."""


class Chaos:
    """One run."""

    def __init__(self, workers: int, seed: int, namespaces: Namespaces | None) -> None:
        self.chance = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="zrpc-chaos-"))
        self.key = str(self.folder / "key")
        write_key_file(new_keyring("chaos"), self.key)
        self.namespaces = namespaces
        self.faults: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.problems: list[str] = []
        self.samples: list[dict[str, tuple[int, int]]] = []
        self.growth = Growth()
        self.is_calm = False
        self.later: list[tuple[float, Any]] = []
        self.broker: Node | None = None
        self.address = "tcp://127.0.0.1:0" if namespaces is None else f"tcp://{namespaces.host(0)}:0"
        self.nodes: dict[str, Node] = {}
        self.start_broker("first")
        for index in range(workers):
            self.start(f"w{index}", index + 1)

    # --------------------------------------------------------------------------------------- processes

    def _command(self, place: int) -> list[str]:
        return [] if self.namespaces is None else self.namespaces.command(place)

    def start_broker(self, which: str = "next") -> None:
        command = [*self._command(0), *NODE, "broker", self.address, self.key, which]
        self.broker = Node("broker", 0, command, str(self.folder / "broker.log"))
        said = self.broker.wait_for("broker", 150)
        if said is None:
            self.problems.append("a broker did not start")
        else:
            self.address = said["broker"]

    def start(self, name: str, place: int) -> None:
        host = "127.0.0.1" if self.namespaces is None else self.namespaces.host(place)
        command = [*self._command(place), *NODE, "worker", name, self.address, self.key, str(self.folder)]
        command.append(f"tcp://{host}:0")
        self.nodes[name] = Node(name, place, command, str(self.folder / f"{name}.log"))

    def keep_up(self) -> None:
        """Start again who has ended."""
        for name, node in list(self.nodes.items()):
            if not node.is_alive():
                self.take(node)
                self.start(name, node.place)

    def take(self, node: Node) -> None:
        """What an ended process has to say."""
        if node.ended is not None:
            self.faults["ended: " + ("fenced" if node.ended["fenced"] else "other")] += 1
            self.count(node.name, node.ended)

    def count(self, name: str, report: dict[str, Any]) -> None:
        self.made.update(report["made"])
        self.ends.update(report["ends"])
        self.problems += [f"{name}: a wrong result: {what}" for what in report["wrong"]]
        self.problems += [f"{name}: a call hung: {what}" for what in report["hung"]]

    # ------------------------------------------------------------------------------------------ faults

    def misbehave(self) -> None:
        nodes = [node for node in self.nodes.values() if node.is_alive() and not node.is_frozen]
        if len(nodes) < 3:
            return
        node = self.chance.choice(nodes)
        kinds = [self.kill, self.kill, self.freeze, self.freeze, self.kill_broker]
        kinds += [self.cut, self.cut] if self.namespaces is not None else []
        self.chance.choice(kinds)(node)

    def kill(self, node: Node) -> None:
        self.faults["killed"] += 1
        node.signal(signal.SIGKILL)

    def freeze(self, node: Node) -> None:
        self.faults["stopped"] += 1
        node.is_frozen = True
        node.signal(signal.SIGSTOP)
        self.in_a_while(self.chance.choice((0.3, 1.5, 5.0)), lambda: self.thaw(node))

    def thaw(self, node: Node) -> None:
        node.is_frozen = False
        node.signal(signal.SIGCONT)

    def cut(self, node: Node) -> None:
        assert self.namespaces is not None
        self.faults["cut off"] += 1
        self.namespaces.cut(node.place)
        self.in_a_while(self.chance.choice((0.5, 3.0, 6.0)), lambda: self.heal(node.place))

    def heal(self, place: int) -> None:
        assert self.namespaces is not None
        self.namespaces.heal(place)

    def kill_broker(self, _node: Node) -> None:
        if self.broker is not None and self.broker.is_alive():
            self.faults["broker killed"] += 1
            self.broker.signal(signal.SIGKILL)
            self.broker.process.wait()
            self.in_a_while(self.chance.choice((0.2, 1.0, 3.0)), self.start_broker)

    def in_a_while(self, seconds: float, what: Any) -> None:
        self.later.append((time.monotonic() + seconds, what))

    def do_what_is_due(self, everything: bool = False) -> None:
        now = time.monotonic()
        due = [entry for entry in self.later if everything or entry[0] <= now]
        self.later = [entry for entry in self.later if entry not in due]
        for _, what in due:
            what()

    # ---------------------------------------------------------------------------------------------- calm

    def sample(self) -> None:
        """Note memory and descriptors of each worker."""
        reports = self.ask()
        self.samples.append({report["name"]: (report["in_use"], report["descriptors"]) for report in reports})
        served = sum(report["calls_served"] for report in reports)
        kinds = ("resident", "shared", "in_use", "kept_free")
        memory = "; ".join(f"{kind} {[round(r[kind] / 2**20) for r in reports]}" for kind in kinds)
        print(f"{served:,} calls; MiB: {memory}; descriptors {[r['descriptors'] for r in reports]}", flush=True)

    def check_flat(self) -> None:
        """Memory in use and descriptors of the last third of a calm run are those of the second."""
        third = len(self.samples) // 3
        for name in self.nodes:
            for index, (what, most) in enumerate((("memory in use", 1.2), ("descriptors", 1.1))):
                early = max(sample[name][index] for sample in self.samples[third : 2 * third])
                late = max(sample[name][index] for sample in self.samples[2 * third :])
                if late > early * most:
                    self.problems.append(f"{name}: {what} grows from {early:,} to {late:,}")

    # --------------------------------------------------------------------------------------------- the run

    def run(self, minutes: float) -> None:
        for node in list(self.nodes.values()):
            if node.wait_for("up", 120) is None:
                self.problems.append(f"{node.name} did not come up at the start")
        end = time.monotonic() + minutes * 60
        next_fault = 0.0
        while time.monotonic() < end:
            now = time.monotonic()
            self.do_what_is_due()
            self.keep_up()
            self.growth.look({node.name: node.process.pid for node in self.nodes.values() if node.is_alive()}, now)
            if self.is_calm and now >= next_fault:
                self.sample()
                next_fault = now + min(30.0, minutes * 6)
            elif now >= next_fault:
                self.misbehave()
                next_fault = now + self.chance.uniform(*PAUSE)
            time.sleep(0.1)
        self.do_what_is_due(everything=True)

    def settle(self) -> list[dict[str, Any]]:
        """No more faults: wait until all are up, stop the load, and until nothing is left of references."""
        deadline = time.monotonic() + 150
        quiet_since = time.monotonic()
        while time.monotonic() < min(deadline, quiet_since + 30):  # who is fenced has ended, and is up again
            if not all(node.is_alive() for node in self.nodes.values()):
                quiet_since = time.monotonic()
            self.keep_up()
            time.sleep(1.0)
        for node in self.nodes.values():
            node.tell("quiet")
        for node in self.nodes.values():
            if node.wait_for("quiet", 60) is None:
                self.problems.append(f"{node.name} did not become quiet (alive: {node.is_alive()})")
        reports: list[dict[str, Any]] = []
        deadline = time.monotonic() + 45
        while time.monotonic() < deadline:
            reports = self.ask()
            if not any(report[what] for report in reports for what in LEFT):
                break
            time.sleep(1.0)
        return reports

    def ask(self) -> list[dict[str, Any]]:
        for node in self.nodes.values():
            node.tell("report")
        answers = [(node, node.wait_for("report", 20)) for node in self.nodes.values()]
        return [{"name": node.name, **answer["report"]} for node, answer in answers if answer is not None]

    def conclude(self, reports: list[dict[str, Any]], minutes: float) -> int:
        for report in reports:
            self.count(report["name"], report)
            for what in LEFT:
                if report[what]:
                    self.problems.append(f"{report['name']}: {report[what]} {what} are left")
                    (self.folder / f"table-{report['name']}").write_text(report["table"])
            most = OWN_DESCRIPTORS + DESCRIPTORS_PER_PEER * (len(self.nodes) - 1)
            if report["descriptors"] > most:
                self.problems.append(f"{report['name']}: {report['descriptors']} descriptors, more than {most}")
        missing = set(self.nodes) - {report["name"] for report in reports}
        self.problems += [f"{name} does not report" for name in sorted(missing)]
        for node in self.nodes.values():
            if not node.end(40):
                self.problems.append(f"{node.name} did not end")
        if self.broker is not None:
            self.broker.end(10)
        twice, ran = self.ran_twice()
        left = [name for name in os.listdir("/dev/shm") if "zrpc" in name]
        self.problems += [f"shared memory is left: {left}"] if left else []
        self.problems += [f"{twice} functions ran twice"] if twice else []
        summary = {
            "minutes": minutes,
            "faults": dict(self.faults),
            "calls made": sum(self.made.values()),
            "by kind": dict(self.made),
            "ended by": dict(self.ends),
            "hung": sum("hung" in problem for problem in self.problems),
            "python functions run": ran,
            "run twice": twice,
            "left": {what: sum(report[what] for report in reports) for what in LEFT},
            "resident MiB": sorted(round(report["resident"] / 2**20) for report in reports),
            "in use MiB": sorted(round(report["in_use"] / 2**20) for report in reports),
            "growth": self.growth.summary(),
            "descriptors": sorted(report["descriptors"] for report in reports),
            "problems": self.problems[:40],
        }
        print(json.dumps(summary, indent=2))
        return int(bool(self.problems))

    def ran_twice(self) -> tuple[int, int]:
        """Functions that ran more than once for one call, and how many ran."""
        seen: Counter[bytes] = Counter()
        for path in self.folder.glob("ran-*"):
            data = path.read_bytes()
            size = NUMBER.size
            seen.update(data[start : start + size] for start in range(0, len(data) - size + 1, size))
        return sum(count > 1 for count in seen.values()), len(seen)

    def close(self) -> None:
        for node in [*self.nodes.values(), *([self.broker] if self.broker else [])]:
            if node.is_alive():
                node.process.kill()
                node.process.wait()
        if self.problems:
            print(f"logs are in {self.folder}")
        else:
            shutil.rmtree(self.folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--no-namespaces", action="store_true", help="one network for all, without cuts")
    parser.add_argument("--calm", action="store_true", help="no faults; memory and descriptors are looked at")
    given = parser.parse_args()
    namespaces = None
    if not given.no_namespaces:
        try:
            namespaces = Namespaces(given.workers)
        except NotPermitted as error:
            print(f"no worker is cut off in this run, because namespaces cannot be made here: {error}", flush=True)
    print(f"seed {given.seed}", flush=True)
    chaos = None
    try:
        chaos = Chaos(given.workers, given.seed, namespaces)
        chaos.is_calm = given.calm
        chaos.run(given.minutes)
        if given.calm and given.minutes >= 3:  # a shorter one is still warming up
            chaos.check_flat()
        return chaos.conclude(chaos.settle(), given.minutes)
    finally:
        if chaos is not None:
            chaos.close()
        if namespaces is not None:
            namespaces.close()


if __name__ == "__main__":
    raise SystemExit(main())
