"""Real brokers with a standby: killed, stopped and started again, by hand and by a launcher."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import LONG, Process, Scene, free_ports, scene

import zrpc
from zrpc.clock import monotonic

pytestmark = pytest.mark.integration


class Pair:
    """A scene whose broker has a standby."""

    def __init__(self, cluster: Scene) -> None:
        self.cluster = cluster
        self.first = cluster.broker()
        (port,) = free_ports(1)
        self.primary, self.standby = cluster.address, f"tcp://127.0.0.1:{port}"
        self.second = self.stand_by(self.standby, self.primary)
        self.first.read_until(f"the broker at {self.standby} stands by")

    @property
    def both(self) -> str:
        return f"{self.primary},{self.standby}"

    def stand_by(self, address: str, other: str) -> Process:
        arguments = ("--bind", address, "--key-file", self.cluster.key, "--standby", other)
        process = self.cluster.process("broker", *arguments)
        process.read_until(f"standby for {other}")
        return process

    def worker(self, name: str, broker: str) -> Process:
        at = ("--broker", broker, "--key-file", self.cluster.key)
        process = self.cluster.process("worker", name, "--import", "helper", *at)
        process.read_until(f"worker {name} has joined")
        return process

    def status(self, address: str) -> dict[str, Any]:
        code, output = self.cluster.process(
            "status", "--json", "--broker", address, "--key-file", self.cluster.key
        ).end()
        assert code == 0, output
        found: dict[str, Any] = json.loads(output)
        return found

    def ids(self, address: str) -> dict[str, tuple[int, int]]:
        return {m["name"]: (m["id"], m["incarnation"]) for m in self.status(address)["members"] if m["state"] == "up"}

    def wait_for(self, address: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = monotonic() + LONG
        while True:
            found = self.status(address)
            if condition(found):
                return found
            assert monotonic() < deadline, found


def test_calls_and_names_outlive_a_killed_primary_and_newcomers_find_the_standby(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        pair = Pair(cluster)
        pair.worker("w0", pair.primary)
        victim = pair.worker("w1", pair.both)
        cluster.join()
        before = pair.ids(pair.primary)
        told = str(tmp_path / "told")
        under_way = zrpc.rpc_async("w0", "helper:sleep_until_told", (told,), timeout=LONG)
        lost = threading.Event()
        watch = zrpc.on_membership(lambda event: lost.set() if event.worker.name == "w1" else None)

        os.kill(pair.first.pid, signal.SIGKILL)
        assert zrpc.rpc_sync("w1", "helper:pid", timeout=LONG) == victim.pid
        pair.second.read_until("it has taken over")
        late = pair.worker("w2", pair.both)
        assert zrpc.rpc_sync("w2", "helper:pid", timeout=LONG) == late.pid
        (tmp_path / "told").touch()
        assert under_way.wait() == "done"

        after = pair.ids(pair.standby)
        assert {name: after[name] for name in before} == before
        assert after["w2"][0] not in {number for number, _ in before.values()}
        assert not lost.is_set()
        os.kill(victim.pid, signal.SIGKILL)
        assert lost.wait(LONG)
        watch.cancel()


def test_a_primary_that_was_stopped_steps_down_when_it_runs_again(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        pair = Pair(cluster)
        pair.worker("w0", pair.both)
        pair.worker("w1", pair.both)
        before = pair.ids(pair.primary)
        pair.first.send(signal.SIGSTOP)
        pair.second.read_until("it has taken over")
        pair.first.send(signal.SIGCONT)
        pair.first.read_until(f"the broker at {pair.standby} has taken over; this one stands by for it now")
        pair.second.read_until(f"the broker at {pair.primary} stands by")
        assert pair.ids(pair.standby) == before
        seen = pair.wait_for(pair.primary, lambda status: bool(status["is_synced"]))
        assert (seen["is_in_charge"], seen["primary"]) == (False, pair.standby)


def test_a_primary_started_again_stands_by_and_takes_over_in_its_turn(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        pair = Pair(cluster)
        pair.worker("w0", pair.primary)
        pair.worker("w1", pair.primary)
        before = pair.ids(pair.primary)
        os.kill(pair.first.pid, signal.SIGKILL)
        pair.second.read_until("it has taken over")
        again = pair.stand_by(pair.primary, pair.standby)
        pair.second.read_until(f"the broker at {pair.primary} stands by")
        pair.wait_for(pair.standby, lambda status: len(status["members"]) == 2)
        os.kill(pair.second.pid, signal.SIGKILL)
        again.read_until("it has taken over")
        pair.wait_for(pair.primary, lambda status: all(m.get("silence", 9.0) < 9.0 for m in status["members"]))
        assert pair.ids(pair.primary) == before


def test_a_launcher_starts_a_killed_primary_as_the_standby(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        (tmp_path / "cluster.yaml").write_text(
            "cluster: tough\nbroker: {standby: on}\nroles: {trainer: {count: 2, import: [helper]}}\n"
        )
        launcher = cluster.process("launch", "cluster.yaml")
        launcher.read_until("2 workers are up")

        def ask(*arguments: str) -> str:
            code, output = cluster.process(*arguments).end()
            assert code == 0, output
            return output

        before = json.loads(ask("status", "--json"))
        assert before["standby"]["is_connected"]
        os.kill(before["pid"], signal.SIGKILL)
        launcher.read_until("was killed by SIGKILL; it is started again")
        launcher.read_until("it has taken over")
        launcher.read_until(f"the broker at {before['address']} stands by")
        after = json.loads(ask("status", "--json"))
        assert after["address"] == before["standby"]["address"]
        assert after["standby"]["address"] == before["address"]
        kept = ("name", "id", "incarnation", "pid")
        assert [[m[key] for key in kept] for m in after["members"]] == [
            [m[key] for key in kept] for m in before["members"]
        ]
        assert "took over" in ask("events")
        assert ask("call", "trainer-0", "aten::add", "1", "2").strip() == "tensor(3)"
        assert "has 3 workers" in ask("scale", "trainer", "3")
        ask("stop")
        code, output = launcher.end()
        assert code == 0, output
