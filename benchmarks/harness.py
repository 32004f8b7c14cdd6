"""Runs one round of one system: the processes of a cast, and a deadline for all of them.

One rule: no process outlives the round. Each has the deadline in itself too, in case this one is killed.

Processes are forked from one that has imported torch and zrpc, so that a round does not begin with seconds of imports.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from benchmarks.casts import Cast
from benchmarks.scale import Scale
from benchmarks.systems import find_system
from benchmarks.systems.base import Meeting, System
from benchmarks.workloads import LAUNCH, STAGED, launch
from benchmarks.workloads.base import Client, Results

ROUND_SECONDS = 240.0
LEAVE_SECONDS = 10.0
PRELOADED = ["torch", "benchmarks.harness", "benchmarks.report", "benchmarks.functions", "benchmarks.systems.zrpc"]
"""What the processes are forked with: torch (which has TensorPipe in it), and ours."""


@dataclass(frozen=True)
class Order:
    """What a process of a round is told."""

    name: str
    system: str
    cast: Cast
    meeting: Meeting
    workloads: tuple[str, ...]
    scale: Scale
    seconds: float
    folder: str


class RoundFailed(Exception):
    """A process did not do its part. The message has what it said."""


def measure(system: str, workloads: Sequence[str], scale: Scale, seconds: float = ROUND_SECONDS) -> Results:
    """One round: each metric of the workloads. Raises `RoundFailed`."""
    results: Results = {}
    casts: dict[Cast, list[str]] = {}
    for name in workloads:
        if name in STAGED:
            casts.setdefault(STAGED[name].cast(scale), []).append(name)
    for cast, names in casts.items():
        results.update(_measure_cast(system, cast, tuple(names), scale, seconds))
    if LAUNCH in workloads:
        try:
            results.update(launch.run(find_system(system), seconds))
        except (subprocess.TimeoutExpired, launch.NoFirstCall) as error:
            raise RoundFailed(str(error)) from error
    return results


def _measure_cast(system: str, cast: Cast, names: tuple[str, ...], scale: Scale, seconds: float) -> Results:
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(PRELOADED)
    barrier = context.Barrier(len(cast.clients))
    deadline = time.monotonic() + seconds
    with (
        tempfile.TemporaryDirectory() as folder,
        find_system(system).meet(Path(folder), dict(cast.settings)) as meeting,
    ):
        ends: dict[str, Connection] = {}
        processes: dict[str, BaseProcess] = {}
        try:
            for name in cast.ranks:
                order = Order(name, system, cast, meeting, names, scale, seconds, folder)
                ends[name], theirs = context.Pipe()
                processes[name] = context.Process(target=_begin, args=(theirs, order, barrier), name=name)
                processes[name].start()
                theirs.close()  # so that it reads as closed when the process has gone
            _collect(ends, ends, deadline)  # all are ready
            pids = (os.getpid(), *(process.pid for process in processes.values()))  # a broker is in this process
            for name in cast.ranks:
                try:
                    ends[name].send(pids)
                except OSError:  # it was ready, and ran into the deadline since
                    raise RoundFailed(f"the {name} ended early") from None
            found = _collect(ends, cast.clients, deadline)
            results: Results = {}
            for name in names:
                results.update(STAGED[name].combine([one[name] for one in found]))
            return results
        except RoundFailed as error:
            logs = (path.read_text() for path in sorted(Path(folder).glob("*.log")))
            raise RoundFailed("\n".join([str(error), *logs])) from None
        finally:
            for end in ends.values():
                end.close()  # they leave when they see it
            _end(list(processes.values()))


def _collect(ends: Mapping[str, Connection], wanted: Iterable[str], deadline: float) -> list[dict[str, Results]]:
    """The next message of some of the processes. Raises `RoundFailed` when any of them has failed or ended."""
    found: dict[str, dict[str, Results]] = {}
    missing = set(wanted)
    names = {end: name for name, end in ends.items()}
    while missing:
        ready = wait(list(names), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RoundFailed(f"not done at the deadline: {', '.join(sorted(missing))}")
        for end in ready:
            assert isinstance(end, Connection)
            name = names[end]
            try:
                kind, found[name] = end.recv()
            except (EOFError, ConnectionResetError):
                raise RoundFailed(f"the {name} ended early") from None
            if kind == "failed":
                raise RoundFailed(f"the {name} failed:\n{found[name]}")
            missing.discard(name)
            del names[end]
    return list(found.values())


def _end(processes: list[BaseProcess]) -> None:
    deadline = time.monotonic() + LEAVE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _begin(end: Connection, order: Order, barrier: Barrier) -> None:
    """What all processes do: what is printed goes to a log, the end comes at the deadline at the latest."""
    log = os.open(f"{order.folder}/{order.name}.log", os.O_WRONLY | os.O_CREAT, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.dump_traceback_later(order.seconds, exit=True)
    torch.set_num_threads(1)  # as torch's own launcher has it for several processes on one host
    system = find_system(order.system)
    try:
        _take_part(end, order, barrier, system)
        with contextlib.suppress(EOFError):
            end.recv()  # ends with the round
    except Exception:
        with contextlib.suppress(OSError):  # nobody waits for it any more
            end.send(("failed", traceback.format_exc()))
    system.leave()
    os._exit(0)  # a system's threads may not end by themselves


def _take_part(end: Connection, order: Order, barrier: Barrier, system: System) -> None:
    end.send(("ready", {}))
    pids = end.recv()
    began = time.monotonic()
    rpc = system.join(order.name, order.cast.ranks, order.meeting)
    if order.name not in order.cast.clients:
        return
    client = Client(rpc, system.autograd, system.kinds, pids, began, partial(barrier.wait, order.seconds))
    end.send(("done", {name: STAGED[name].run(client, order.scale) for name in order.workloads}))
