"""Child processes: started in a group of their own, with their output in a pipe, and never left behind.

One rule: a child's group is killed before its exit is told, while the number of the process cannot be given to another.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zrpc.launch.entries import GATE_VARIABLE

GUARD = "zrpc.workers.guard"
"""Run by its path, not as a module: it must stand before zrpc and torch are imported."""


@dataclass(frozen=True)
class Program:
    """What to run: a module of Python with arguments, and the environment of its process."""

    module: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    gated: bool = False
    kept: tuple[int, ...] = ()
    """Descriptors that the process gets, under their numbers."""


class Child(Protocol):
    """A process that was started."""

    pid: int
    output: int
    """A descriptor that its output is read from; it does not block."""

    def terminate(self) -> None:
        """Ask the whole group to end."""

    def kill(self) -> None:
        """End the whole group."""

    def release(self) -> None:
        """Open the gate that the process waits at."""

    def close(self) -> None:
        """Give back descriptors, after the exit."""


class Spawner(Protocol):
    """Starts processes."""

    def spawn(self, program: Program, on_exit: Callable[[int], None]) -> Child:
        """Start a process; `on_exit(code)` is called from some thread once it and its group are gone.

        Raises `OSError` when it cannot be started.
        """


def guard_path() -> str:
    """The guard's file."""
    spec = importlib.util.find_spec(GUARD)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"{GUARD} is not installed")
    return spec.origin


class GuardedChild:
    """A process behind the guard (see `workers/guard.py`)."""

    def __init__(self, popen: subprocess.Popen[bytes], output: int, lifeline: int, gate: int | None) -> None:
        self._popen = popen
        self._lifeline = lifeline
        self._gate = gate
        self._lock = threading.Lock()
        self._gone = False
        self.pid = popen.pid
        self.output = output

    def _signal(self, signum: int) -> None:
        with self._lock:
            if not self._gone:
                signal_group(self.pid, signum)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def release(self) -> None:
        if self._gate is not None:
            gate, self._gate = self._gate, None
            try:
                os.write(gate, b"go")
            except OSError:
                pass  # the job has ended already
            os.close(gate)

    def wait(self) -> int:
        """Wait for the exit, kill what is left of the group, and return the code (negative: a signal)."""
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._lock:
            self._gone = True
            signal_group(self.pid, signal.SIGKILL)
            return self._popen.wait()

    def close(self) -> None:
        for descriptor in (self.output, self._lifeline, self._gate):
            if descriptor is not None:
                os.close(descriptor)
        self._gate = None


def signal_group(pid: int, signum: int) -> None:
    """Signal a process group; nothing happens when it is gone."""
    try:
        os.killpg(pid, signum)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        pass


class GuardedSpawner:
    """Starts real processes."""

    def spawn(self, program: Program, on_exit: Callable[[int], None]) -> GuardedChild:
        opened: list[int] = []
        try:
            lifeline, lifeline_end = _pipe(opened)
            output, output_end = _pipe(opened)
            kept = [lifeline]
            environment = dict(program.environment)
            gate_end: int | None = None
            if program.gated:
                gate, gate_end = _pipe(opened)
                kept.append(gate)
                environment[GATE_VARIABLE] = str(gate)
            popen = subprocess.Popen(
                [sys.executable, guard_path(), str(lifeline), program.module, *program.arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output_end,
                stderr=output_end,
                pass_fds=[*kept, *program.kept],
                start_new_session=True,
            )
        except BaseException:
            for descriptor in opened:
                os.close(descriptor)
            raise
        for descriptor in (*kept, output_end):
            os.close(descriptor)
        os.set_blocking(output, False)
        child = GuardedChild(popen, output, lifeline_end, gate_end)
        waiter = threading.Thread(target=lambda: on_exit(child.wait()), name=f"zrpc-wait-{child.pid}", daemon=True)
        waiter.start()
        return child


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe()
    opened.extend(ends)
    return ends
