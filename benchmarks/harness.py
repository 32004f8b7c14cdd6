"""Runs one round of one system: a server process, a client process, and a deadline for both.

One rule: no process outlives the round. Each has the deadline in itself too, in case this one is killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.scale import Scale
from benchmarks.systems import find_system
from benchmarks.systems.base import CLIENT, SERVER, Meeting, System
from benchmarks.workloads import PAIRED, STARTUP, startup
from benchmarks.workloads.base import Client

ROUND_SECONDS = 180.0
LEAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Order:
    """What a process of a round is told."""

    system: str
    meeting: Meeting
    workloads: tuple[str, ...]
    scale: Scale
    seconds: float
    log: str


Main = Callable[[Connection, System, Order], dict[str, float]]


class RoundFailed(Exception):
    """A process did not do its part. The message has what it said."""


def measure(system: str, workloads: Sequence[str], scale: Scale, seconds: float = ROUND_SECONDS) -> dict[str, float]:
    """One round: each metric of the workloads. Raises `RoundFailed`."""
    results = {}
    if paired := [name for name in workloads if name in PAIRED]:
        results.update(_measure_pair(system, paired, scale, seconds))
    if STARTUP in workloads:
        try:
            results.update(startup.run(find_system(system), seconds))
        except (subprocess.TimeoutExpired, startup.NoFirstCall) as error:
            raise RoundFailed(str(error)) from error
    return results


def _measure_pair(system: str, workloads: Sequence[str], scale: Scale, seconds: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder, find_system(system).meet(Path(folder)) as meeting:
        ends: dict[str, Connection] = {}
        processes: dict[str, BaseProcess] = {}
        try:
            for name, main in ((SERVER, _serve), (CLIENT, _run_client)):
                order = Order(system, meeting, tuple(workloads), scale, seconds, f"{folder}/{name}.log")
                ends[name], processes[name] = _start(name, main, order)
            deadline = time.monotonic() + seconds
            _receive(ends[SERVER], SERVER, deadline)
            ends[CLIENT].send((os.getpid(), processes[SERVER].pid))  # a system's broker is in this process
            return _receive(ends[CLIENT], CLIENT, deadline)
        except RoundFailed as error:
            logs = (path.read_text() for path in sorted(Path(folder).glob("*.log")))
            raise RoundFailed("\n".join([str(error), *logs])) from None
        finally:
            for end in ends.values():
                end.close()  # they leave when they see it
            _end(list(processes.values()))


def _start(name: str, main: Main, order: Order) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_begin, args=(main, theirs, order), name=name)
    process.start()
    theirs.close()  # so that it reads as closed when the process has gone
    return ours, process


def _receive(end: Connection, name: str, deadline: float) -> dict[str, float]:
    if not end.poll(max(0.0, deadline - time.monotonic())):
        raise RoundFailed(f"the {name} was not done at its deadline")
    try:
        kind, value = end.recv()
    except EOFError:
        raise RoundFailed(f"the {name} ended early") from None
    if kind != "done":
        raise RoundFailed(f"the {name} failed:\n{value}")
    result: dict[str, float] = value
    return result


def _end(processes: list[BaseProcess]) -> None:
    deadline = time.monotonic() + LEAVE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _begin(main: Main, end: Connection, order: Order) -> None:
    """What both processes do: what is printed goes to a log, the end comes at the deadline at the latest."""
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.dump_traceback_later(order.seconds, exit=True)
    system = find_system(order.system)
    try:
        end.send(("done", main(end, system, order)))
        end.poll(order.seconds)  # closed when the round is over
    except Exception:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            end.send(("failed", traceback.format_exc()))
    system.leave()
    os._exit(0)  # a system's threads may not end by themselves


def _serve(_end: Connection, system: System, order: Order) -> dict[str, float]:
    system.join(SERVER, order.meeting)
    return {}


def _run_client(end: Connection, system: System, order: Order) -> dict[str, float]:
    rpc = system.join(CLIENT, order.meeting)
    client = Client(rpc, system.autograd, (os.getpid(), *end.recv()))
    results: dict[str, float] = {}
    for name in order.workloads:
        results.update(PAIRED[name](client, order.scale))
    return results
