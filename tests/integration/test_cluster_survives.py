"""Launched clusters whose broker, workers and job are killed: they go on, grow and shrink, and say what happened."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from processes import LONG, Process, Scene, scene

from zrpc.clock import monotonic

pytestmark = pytest.mark.integration

FILES = {
    "cluster.yaml": """
cluster: tough
roles:
  trainer:
    count: 2
    import: [helper]
    restart: {policy: on-failure, backoff: 0.1, max_restarts: 100}
""",
}


def launch(cluster: Scene, *arguments: str) -> Process:
    for name, text in FILES.items():
        (cluster.folder / name).write_text(text)
    return cluster.process("launch", "cluster.yaml", *arguments)


def ask(cluster: Scene, *arguments: str) -> str:
    code, output = cluster.process(*arguments).end()
    assert code == 0, output
    return output


def status(cluster: Scene) -> dict[str, object]:
    found: dict[str, object] = json.loads(ask(cluster, "status", "--json"))
    return found


def member(found: dict[str, object], name: str) -> dict[str, object]:
    members = found["members"]
    assert isinstance(members, list)
    (one,) = [m for m in members if m["name"] == name]
    assert isinstance(one, dict)
    return one


def test_a_killed_broker_is_started_again_and_learns_its_members(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        launcher = launch(cluster)
        launcher.read_until("2 workers are up")
        before = status(cluster)
        assert isinstance(before["pid"], int)
        assert before["pid"] != launcher.pid
        os.kill(before["pid"], signal.SIGKILL)
        launcher.read_until("the broker was killed by SIGKILL; it is started again")
        launcher.read_until("the broker is back")
        deadline = monotonic() + LONG
        while True:
            after = status(cluster)
            members = after["members"]
            assert isinstance(members, list)
            if len(members) == 2:
                break
            assert monotonic() < deadline
        for name in ("trainer-0", "trainer-1"):
            old, new = member(before, name), member(after, name)
            assert [old[key] for key in ("id", "incarnation", "life", "pid")] == [
                new[key] for key in ("id", "incarnation", "life", "pid")
            ]
        assert ask(cluster, "call", "trainer-0", "aten::add", "1", "2").strip() == "tensor(3)"
        ask(cluster, "stop")
        code, output = launcher.end()
        assert code == 0, output


def test_a_killed_worker_is_named_with_its_last_lines_and_what_is_done(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        launcher = launch(cluster)
        launcher.read_until("2 workers are up")
        ask(cluster, "call", "trainer-1", "builtins:print", "hello")
        launcher.read_until("hello")
        os.kill(int(str(member(status(cluster), "trainer-1")["pid"])), signal.SIGKILL)
        launcher.read_until("trainer-1 was killed by SIGKILL; its last lines:")
        launcher.read_until("  hello")
        launcher.read_until("trainer-1: restart 1 of 100 in 0.1 s")
        events = [json.loads(line) for line in ask(cluster, "events", "--json").splitlines()]
        assert ("died", "trainer-1", "was killed by SIGKILL") in [(e["kind"], e["name"], e["why"]) for e in events]


def test_a_running_cluster_grows_and_shrinks(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        launcher = launch(cluster)
        launcher.read_until("2 workers are up")
        assert "role trainer has 3 workers: trainer-0, trainer-1, trainer-2" in ask(cluster, "scale", "trainer", "3")
        assert "role trainer has 1 workers: trainer-0" in ask(cluster, "scale", "trainer", "1")
        launcher.read_until("trainer-1 has left")
        code, output = cluster.process("scale", "learner", "1").end()
        assert (code, "there is no role 'learner' that can be scaled; there are trainer" in output) == (5, True), output
        shown = ask(cluster, "events")
        assert "scaling" in shown
        assert "to 3" in shown


def test_nothing_is_left_of_a_cluster_whose_launcher_is_killed(tmp_path: Path) -> None:
    with scene(tmp_path) as cluster:
        launcher = launch(cluster)
        launcher.read_until("2 workers are up")
        started = psutil.Process(launcher.pid).children(recursive=True)
        assert len([p for p in started if "zrpc.workers.broker" in " ".join(p.cmdline())]) == 1
        launcher.popen.kill()
        assert psutil.wait_procs(started, timeout=LONG)[1] == []
