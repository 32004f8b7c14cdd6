"""What workloads share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from benchmarks.casts import Cast
from benchmarks.functions import python_add, script_add
from benchmarks.scale import Scale
from benchmarks.systems.base import Rpc

FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "TorchScript": script_add,
    "Python": python_add,
}
LEAST_CALLS = 5
"""Calls of which a median is taken, whatever they take."""
Results = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """One number: its name in results, what it says, and in what unit."""

    key: str
    title: str
    unit: str
    is_rate: bool = False
    """More is better."""
    target: float | None = None
    """What ours is to be at most of the others' (of a rate: at least); of the better of them."""
    limit: float | None = None
    """What ours is to be at most, whatever the others have."""


class Workload(Protocol):
    """A module of this folder."""

    METRICS: tuple[Metric, ...]

    def cast(self, scale: Scale) -> Cast:
        """The processes that it needs."""

    def run(self, client: Client, scale: Scale) -> Results:
        """Measure; in the process of each client."""

    def combine(self, results: Sequence[Results]) -> Results:
        """The metrics, from what the clients measured."""


@dataclass(frozen=True)
class Client:
    """The side of a client."""

    rpc: Rpc
    autograd: Any
    """The system's module of distributed autograd, if it has one."""
    kinds: tuple[str, ...]
    """The kinds of functions, of `FUNCTIONS`, that the system makes a difference between."""
    pids: tuple[int, ...]
    """All processes that the system runs in: the clients, the servers, and what they need besides."""
    began: float
    """When it began to join, by `time.monotonic()`, which all processes share."""
    meet: Callable[[], None]
    """Wait for the other clients."""


def only(results: Sequence[Results]) -> Results:
    """The results of the only client."""
    (one,) = results
    return one


def time_calls(call: Callable[[], Any], count: int, warmup: int, seconds: float = float("inf")) -> list[float]:
    """Seconds that each of `count` calls took, sorted; of fewer when they have taken `seconds`."""
    for _ in range(warmup):
        call()
    clock = time.perf_counter
    taken: list[float] = []
    end = clock() + seconds
    while len(taken) < count and (len(taken) < LEAST_CALLS or clock() < end):
        start = clock()
        call()
        taken.append(clock() - start)
    return sorted(taken)


def quantile(ordered: list[float], part: float) -> float:
    """The value below which `part` of the ordered ones are."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def check_answer(client: Client, to: str, function: Any, args: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A system that answers fast and wrong is not measured."""
    assert torch.equal(client.rpc.rpc_sync(to, function, args=args), args[0] + args[1])


def processor_seconds(pids: Sequence[int]) -> float:
    """Processor time that some processes have used, all their threads, to the nanosecond where the system tells it."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)  # the clock of a process: clock_getcpuclockid(3)


def available_memory() -> int:
    """Bytes of memory of this machine that nobody uses."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
