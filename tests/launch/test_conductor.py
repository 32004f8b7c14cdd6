from __future__ import annotations

import io
import os
from collections.abc import Callable

from zrpc.launch.conductor import Conductor
from zrpc.launch.events import Charge, Interrupted, Joined
from zrpc.launch.plan import Plan
from zrpc.launch.printer import Printer
from zrpc.launch.processes import Program


class FakeChild:
    """A process that does nothing by itself; its output is a real pipe, because the conductor waits on it."""

    def __init__(self, pid: int, on_exit: Callable[[int], None]) -> None:
        self.pid = pid
        self.output, self._writer = os.pipe()
        os.set_blocking(self.output, False)
        self.on_exit = on_exit
        self.orders: list[str] = []
        self.obeys = True
        self.has_ended = False

    def prints(self, data: bytes) -> None:
        os.write(self._writer, data)

    def ends(self, code: int) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.on_exit(code)

    def terminate(self) -> None:
        self.orders.append("terminate")
        if self.obeys:
            self.ends(-15)

    def kill(self) -> None:
        self.orders.append("kill")
        self.ends(-9)

    def release(self) -> None:
        self.orders.append("release")
        self.prints(b"working\n")
        self.ends(0)

    def close(self) -> None:
        os.close(self.output)
        os.close(self._writer)


class FakeSpawner:
    def __init__(self, script: Callable[[str, FakeChild], None]) -> None:
        self.children: dict[str, FakeChild] = {}
        self._script = script

    def spawn(self, program: Program, on_exit: Callable[[int], None]) -> FakeChild:
        child = FakeChild(100 + len(self.children), on_exit)
        self.children[program.module] = child
        self._script(program.module, child)
        return child


class Scene:
    """A conductor with a clock that jumps to whatever it waits for."""

    def __init__(self, charges: list[Charge], script: Callable[[str, FakeChild], None]) -> None:
        self.out = io.StringIO()
        self.exits: list[tuple[str, str]] = []
        self.now = 0.0
        self.spawner = FakeSpawner(script)
        plans = {charge.name: Plan(charge, Program(charge.name)) for charge in charges}
        self.conductor = Conductor(
            plans,
            Printer(self.out, list(plans)),
            self.spawner,
            self._clock,
            lambda name, pid, why: self.exits.append((name, why)),
        )

    def _clock(self) -> float:
        self.now += 1.0
        return self.now


WORKER = Charge("w", start_timeout=1000, stop_timeout=3)
JOB = Charge("job", is_job=True)


def test_a_job_runs_and_everything_ends() -> None:
    def script(name: str, child: FakeChild) -> None:
        if name == "w":
            child.prints(b"hello\npartly")
            scene.conductor.post(Joined("w"))

    scene = Scene([WORKER, JOB], script)
    assert scene.conductor.run() == 0
    assert scene.spawner.children["job"].orders == ["release"]
    assert scene.spawner.children["w"].orders == ["terminate"]
    assert scene.exits == [("job", "ended with exit code 0"), ("w", "was killed by SIGTERM")]
    lines = scene.out.getvalue().splitlines()
    assert "w    | hello" in lines
    assert "job  | working" in lines
    assert lines[-1] == "w    | partly"


def test_a_worker_that_does_not_obey_is_killed() -> None:
    def script(name: str, child: FakeChild) -> None:
        child.obeys = False
        scene.conductor.post(Interrupted(2))

    scene = Scene([WORKER], script)
    assert scene.conductor.run() == 130
    assert scene.spawner.children["w"].orders == ["terminate", "kill"]


def test_a_failing_worker_is_blamed_with_its_last_lines() -> None:
    def script(name: str, child: FakeChild) -> None:
        if name == "w":
            child.prints(b"Traceback\nValueError: no\n")
            child.ends(1)

    scene = Scene([WORKER, JOB], script)
    assert scene.conductor.run() == 3
    lines = scene.out.getvalue().splitlines()
    at = lines.index("zrpc | w ended with exit code 1; its last lines:")
    assert lines[at + 1 : at + 3] == ["zrpc |   Traceback", "zrpc |   ValueError: no"]


def test_a_failing_job_is_named_without_its_last_lines() -> None:
    def script(name: str, child: FakeChild) -> None:
        child.prints(b"oh\n")
        child.ends(4)

    scene = Scene([JOB], script)
    assert scene.conductor.run() == 1
    lines = scene.out.getvalue().splitlines()
    assert "job  | oh" in lines
    assert lines[-1] == "zrpc | job ended with exit code 4"


class _NoSpawner:
    def spawn(self, program: Program, on_exit: Callable[[int], None]) -> FakeChild:
        raise FileNotFoundError(2, "No such file or directory", "python")


def test_a_process_that_cannot_be_started() -> None:
    out = io.StringIO()
    plans = {"w": Plan(WORKER, Program("w"))}
    conductor = Conductor(plans, Printer(out, ["w"]), _NoSpawner(), lambda: 0.0, lambda *_: None)
    assert conductor.run() == 3
    assert "w could not be started: [Errno 2] No such file or directory: 'python'" in out.getvalue()
