"""The loop of a launcher: takes what happens, asks the supervisor, and does what it says.

One rule: everything is decided by one thread, the one in `run`; other threads and signal handlers only `post`.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Mapping
from dataclasses import replace

from zrpc.clock import Clock, time_left
from zrpc.launch.entries import RESTART_VARIABLE
from zrpc.launch.events import (
    Begin,
    Blame,
    Charge,
    Effect,
    Event,
    Exited,
    Finish,
    Kill,
    Note,
    Release,
    Spawn,
    SpawnFailed,
    StopAsked,
    Terminate,
)
from zrpc.launch.exits import describe_exit
from zrpc.launch.plan import Plan
from zrpc.launch.printer import Printer
from zrpc.launch.processes import Child, Spawner
from zrpc.launch.supervisor import Supervisor
from zrpc.transport.poller import Poller

READ_BYTES = 64 * 1024


class _Output:
    """A running process, as something to wait on."""

    def __init__(self, name: str, child: Child) -> None:
        self.name = name
        self.child = child

    def fileno(self) -> int:
        return self.child.output

    def read(self) -> bytes | None:
        """What it has written; None when there is nothing now, nothing at all at the end."""
        try:
            return os.read(self.child.output, READ_BYTES)
        except BlockingIOError:
            return None


class Conductor:
    """Runs a cluster's processes until nothing is left of them. `on_exit(name, pid, why)` is told of every exit;
    `plan_more(role, index)` plans one more worker of a role."""

    def __init__(
        self,
        plans: Mapping[str, Plan],
        printer: Printer,
        spawner: Spawner,
        clock: Clock,
        on_exit: Callable[[str, int, str], None],
        plan_more: Callable[[str, int], Plan] | None = None,
    ) -> None:
        self._plans = dict(plans)
        self._plan_more = plan_more
        self._printer = printer
        self._spawner = spawner
        self._clock = clock
        self._on_exit = on_exit
        recruit = None if plan_more is None else self._recruit
        self._supervisor = Supervisor([plan.charge for plan in plans.values()], recruit)
        self._poller = Poller()
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running: dict[str, _Output] = {}
        self._code: int | None = None
        self._told_broken = False

    def post(self, event: Event) -> None:
        """Tell of something that happened; from any thread or signal handler."""
        self._inbox.put(event)
        self._poller.wake()

    def run(self) -> int:
        """Start everything, and return the exit code once everything has ended."""
        try:
            self._take(Begin())
            while self._code is None:
                self._turn()
            return self._code
        finally:
            for output in self._running.values():  # only after a fault of the launcher itself
                output.child.kill()
            self._poller.close()

    def _turn(self) -> None:
        for source in self._poller.wait(time_left(self._supervisor.next_deadline(), self._clock())):
            assert isinstance(source, _Output)
            self._forward(source)
        while not self._inbox.empty():
            self._take(self._inbox.get())
        self._perform(self._supervisor.tick(self._clock()))
        if self._printer.is_broken and not self._told_broken:
            self._told_broken = True
            self._take(StopAsked("nobody reads the output"))

    def _take(self, event: Event) -> None:
        if isinstance(event, Exited):
            self._bury(event)
        self._perform(self._supervisor.handle(event, self._clock()))

    def _forward(self, output: _Output) -> None:
        data = output.read()
        if data:
            self._printer.feed(output.name, data)
        elif data is not None:
            self._poller.remove(output)  # it has closed its output, and may go on running

    def _bury(self, event: Exited) -> None:
        """Show the last that a process has written, give its descriptors back, and tell the broker."""
        output = self._running.pop(event.name)
        self._poller.remove(output)
        data = output.read()
        while data:
            self._printer.feed(event.name, data)
            data = output.read()
        self._printer.finish(event.name)
        output.child.close()
        self._on_exit(event.name, output.child.pid, describe_exit(event.code))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Spawn):
                self._spawn(effect.name, effect.restarts)
            elif isinstance(effect, Note):
                self._printer.note(effect.text)
            elif isinstance(effect, Blame):
                # What the job printed last stands right above; a worker's lines may be far away.
                self._printer.blame(effect.name, effect.why, tail=not self._plans[effect.name].charge.is_job)
            elif isinstance(effect, Finish):
                self._code = effect.code
            elif effect.name in self._running:
                self._act(effect, self._running[effect.name].child)

    def _act(self, effect: Release | Terminate | Kill, child: Child) -> None:
        if isinstance(effect, Release):
            child.release()
        elif isinstance(effect, Terminate):
            child.terminate()
        else:
            child.kill()

    def _recruit(self, role: str, index: int) -> Charge:
        """Plan one more worker of a role."""
        assert self._plan_more is not None
        plan = self._plan_more(role, index)
        self._plans[plan.charge.name] = plan
        self._printer.enlist(plan.charge.name)
        return plan.charge

    def _spawn(self, name: str, restarts: int) -> None:
        program = self._plans[name].program
        program = replace(program, environment={**program.environment, RESTART_VARIABLE: str(restarts)})
        try:
            child = self._spawner.spawn(program, lambda code: self.post(Exited(name, code)))
        except OSError as error:
            self.post(SpawnFailed(name, f"could not be started: {error}"))
            return
        output = _Output(name, child)
        self._running[name] = output
        self._poller.add(output)
        self._printer.detail(f"{name} is process {child.pid}")
