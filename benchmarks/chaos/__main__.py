"""Twelve workers under mixed load, and everything that goes wrong in a cluster, at random, for some minutes.

    python -m benchmarks.chaos --minutes 2 [--workers 12] [--seed N] [--no-namespaces] [--no-standby]
    python -m benchmarks.chaos --calm --minutes 20 --workers 3      no faults: do memory and descriptors stay flat?

Workers are killed and come again under their names, are stopped (SIGSTOP) and go on, are cut off. So are the broker and its
standby, together and one after the other; they come again as a launcher starts them, and are parted from each other. When a
broker is lost, a newcomer tries to join, and it is noted how long that takes. In the end the faults stop, the load stops,
and it is counted: calls and how they ended, calls that hung, functions that ran twice, ids that were given twice,
references, descriptors, shared memory and processes that are left. The exit code is 1 when a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from benchmarks.chaos.brokers import Brokers
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
BROKERS_SHARE = 0.2
"""How many of all faults are those of brokers."""


class Chaos:
    """One run."""

    def __init__(self, workers: int, seed: int, namespaces: Namespaces | None, standby: bool = True) -> None:
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
        self.cut_off: set[int] = set()
        self.lives: deque[tuple[str, list[int]]] = deque()
        self.nodes: dict[str, Node] = {}
        places = (workers + 1, workers + 2)
        self.brokers = Brokers(
            self.folder, self.key, namespaces, places, self.chance, self.in_a_while, workers, standby, self.tell
        )
        for index in range(workers):
            self.start(f"w{index}", index + 1)

    # --------------------------------------------------------------------------------------- processes

    def _command(self, place: int) -> list[str]:
        return [] if self.namespaces is None else self.namespaces.command(place)

    def start(self, name: str, place: int) -> None:
        host = "127.0.0.1" if self.namespaces is None else self.namespaces.host(place)
        command = [*self._command(place), *NODE, name, self.brokers.addresses, self.key, str(self.folder)]
        command.append(f"tcp://{host}:0")
        self.nodes[name] = Node(name, place, command, str(self.folder / f"{name}.log"), self.hear)

    def tell(self, what: str) -> None:
        """A line of the story of this run, which is in its folder: seconds of the clock that all processes share."""
        with open(self.folder / "story", "a") as file:
            file.write(f"{time.monotonic():.3f} {what}\n")

    def hear(self, node: Node, message: dict[str, Any]) -> None:
        """A worker has said something; in a thread that reads."""
        if "up" in message:
            self.lives.append((node.name, message["life"]))
            self.tell(f"{node.name} is up: {message['life']}")

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
        if self.chance.random() < BROKERS_SHARE:
            self.brokers.misbehave(sum(node.is_frozen for node in self.nodes.values()) + len(self.cut_off))
            return
        node = self.chance.choice(nodes)
        kinds = [self.kill, self.freeze]
        kinds += [self.cut] if self.namespaces is not None else []
        self.brokers.outages.note_blow()
        self.chance.choice(kinds)(node)

    def kill(self, node: Node) -> None:
        self.faults["killed"] += 1
        self.tell(f"{node.name} is killed")
        node.signal(signal.SIGKILL)

    def freeze(self, node: Node) -> None:
        self.faults["stopped"] += 1
        self.tell(f"{node.name} is stopped")
        node.is_frozen = True
        node.signal(signal.SIGSTOP)
        self.in_a_while(self.chance.choice((0.3, 1.5, 5.0)), lambda: self.thaw(node))

    def thaw(self, node: Node) -> None:
        node.is_frozen = False
        self.tell(f"{node.name} goes on")
        node.signal(signal.SIGCONT)

    def cut(self, node: Node) -> None:
        assert self.namespaces is not None
        self.faults["cut off"] += 1
        self.tell(f"{node.name} is cut off")
        self.namespaces.cut(node.place)
        self.cut_off.add(node.place)
        self.in_a_while(self.chance.choice((0.5, 3.0, 6.0)), lambda: self.heal(node.place))

    def heal(self, place: int) -> None:
        assert self.namespaces is not None
        self.namespaces.heal(place)
        self.cut_off.discard(place)

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
            self.brokers.look()
            self.keep_up()
            self.growth.look({node.name: node.process.pid for node in self.nodes.values() if node.is_alive()}, now)
            if self.is_calm and now >= next_fault:
                self.sample()
                next_fault = now + min(30.0, minutes * 6)
            elif now >= next_fault:
                self.misbehave()
                next_fault = now + self.chance.uniform(*PAUSE)
            time.sleep(0.1)
        while self.later:  # what is put off may put something off
            self.do_what_is_due(everything=True)

    def settle(self) -> list[dict[str, Any]]:
        """No more faults: wait until all are up, stop the load, and until nothing is left of references."""
        deadline = time.monotonic() + 150
        quiet_since = time.monotonic()
        while time.monotonic() < min(deadline, quiet_since + 30):  # who is fenced has ended, and is up again
            if not all(node.is_alive() for node in self.nodes.values()) or not self.brokers.is_settled():
                quiet_since = time.monotonic()
            self.keep_up()
            self.brokers.keep_up()
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
        self.brokers.check(set(self.nodes))
        for node in self.nodes.values():
            if not node.end(40):
                self.problems.append(f"{node.name} did not end")
        self.brokers.end()
        self.problems += self.brokers.problems + self.given_twice()
        twice, ran = self.ran_twice()
        left = [name for name in os.listdir("/dev/shm") if "zrpc" in name]
        self.problems += [f"shared memory is left: {left}"] if left else []
        self.problems += [f"{twice} functions ran twice"] if twice else []
        summary = {
            "minutes": minutes,
            "faults": dict(self.faults + self.brokers.faults),
            "take-overs": self.brokers.outages.summary(),
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

    def given_twice(self) -> list[str]:
        """Lives that were given to two processes, and ids that were given to two names."""
        lives: dict[tuple[str, int], str] = {}
        found = []
        for name, (worker_id, life, incarnation) in [*self.lives, *self.brokers.lives]:
            for what, number, owner in (
                ("incarnation", incarnation, f"{name}, life {life}"),
                ("id", worker_id, name),
            ):
                if lives.setdefault((what, number), owner) != owner:
                    found.append(f"{what} {number} was given twice: to {lives[what, number]} and to {owner}")
        return found

    def ran_twice(self) -> tuple[int, int]:
        """Functions that ran more than once for one call, and how many ran."""
        seen: Counter[bytes] = Counter()
        for path in self.folder.glob("ran-*"):
            data = path.read_bytes()
            size = NUMBER.size
            seen.update(data[start : start + size] for start in range(0, len(data) - size + 1, size))
        return sum(count > 1 for count in seen.values()), len(seen)

    def close(self) -> None:
        for node in [*self.nodes.values(), *self.brokers.nodes()]:
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
    parser.add_argument("--no-standby", action="store_true", help="one broker, that is killed and started again")
    parser.add_argument("--calm", action="store_true", help="no faults; memory and descriptors are looked at")
    given = parser.parse_args()
    namespaces = None
    if not given.no_namespaces:
        try:
            namespaces = Namespaces(given.workers + 2)
        except NotPermitted as error:
            print(f"no worker is cut off in this run, because namespaces cannot be made here: {error}", flush=True)
    print(f"seed {given.seed}", flush=True)
    chaos = None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and take processes and namespaces along
    try:
        chaos = Chaos(given.workers, given.seed, namespaces, not given.no_standby)
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
