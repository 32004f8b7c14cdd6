"""What workloads share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.functions import python_add, script_add
from benchmarks.systems.base import Rpc

FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "TorchScript": script_add,
    "Python": python_add,
}


@dataclass(frozen=True)
class Metric:
    """One number: its name in results, what it says, and in what unit."""

    key: str
    title: str
    unit: str
    is_rate: bool = False
    """More is better."""


@dataclass(frozen=True)
class Client:
    """The client's side of a pair."""

    rpc: Rpc
    autograd: Any
    """The system's module of distributed autograd."""
    pids: tuple[int, ...]
    """All processes that the system runs in: the client, the server, and what they need besides."""


def time_calls(call: Callable[[], Any], count: int, warmup: int) -> list[float]:
    """Seconds that each of `count` calls took, sorted."""
    for _ in range(warmup):
        call()
    clock = time.perf_counter
    seconds = []
    for _ in range(count):
        start = clock()
        call()
        seconds.append(clock() - start)
    return sorted(seconds)


def quantile(ordered: list[float], part: float) -> float:
    """The value below which `part` of the ordered ones are."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def check_answer(client: Client, to: str, function: Any, args: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A system that answers fast and wrong is not measured."""
    assert torch.equal(client.rpc.rpc_sync(to, function, args=args), args[0] + args[1])
