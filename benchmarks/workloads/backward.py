"""A backward pass over two processes: a chain of calls, a fan-out, and branches that meet and part at each level.

Each has the same graph in one process beside it. Only the pass is timed, not the calls that record it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import python_add
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, only, quantile

CHAIN, FANS, LEVELS, LONG = 16, 8, 10, 100
TITLES = {
    "chain": f"backward through a chain of {CHAIN} calls",
    "fan-out": f"backward through {FANS} calls with one argument, {LONG} operations behind it",
    "shared": f"backward through {LEVELS} levels of two calls each, 2^{LEVELS} paths",
}
METRICS = tuple(
    Metric(f"backward {name}{where}", title + words, "ms")
    for name, title in TITLES.items()
    for where, words in (("", ""), (" local", ", in one process"))
)
combine = only

Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cast(_scale: Scale) -> Cast:
    return PAIR


def chain(call: Call, x: torch.Tensor) -> torch.Tensor:
    y = x
    for _ in range(CHAIN):
        y = call(y, x)
    return y.sum()


def fan_out(call: Call, x: torch.Tensor) -> torch.Tensor:
    y = x
    for _ in range(LONG):
        y = y * 1.01
    total = y
    for _ in range(FANS):
        total = total + call(y, y)
    return total.sum()


def shared(call: Call, x: torch.Tensor) -> torch.Tensor:
    y = x
    for _ in range(LEVELS):
        y = call(y, x) + call(x, y)
    return y.sum()


GRAPHS: dict[str, Callable[[Call, torch.Tensor], torch.Tensor]] = {
    "chain": chain,
    "fan-out": fan_out,
    "shared": shared,
}


def run(client: Client, scale: Scale) -> dict[str, float]:
    results = {}
    for name, graph in GRAPHS.items():
        seconds, local = [], []
        for _ in range(scale.passes):
            seconds.append(_time_pass(client, graph))
            x = torch.ones(64, requires_grad=True)
            loss = graph(python_add, x)
            start = time.perf_counter()
            torch.autograd.grad(loss, [x])
            local.append(time.perf_counter() - start)
        results[f"backward {name}"] = quantile(sorted(seconds), 0.5) * 1e3
        results[f"backward {name} local"] = quantile(sorted(local), 0.5) * 1e3
    return results


def _time_pass(client: Client, graph: Callable[[Call, torch.Tensor], torch.Tensor]) -> float:
    autograd: Any = client.autograd

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = client.rpc.rpc_sync(SERVER, python_add, args=(x, y))
        return result

    x = torch.ones(64, requires_grad=True)
    with autograd.context() as context_id:
        loss = graph(call, x)
        start = time.perf_counter()
        autograd.backward(context_id, [loss])
        seconds = time.perf_counter() - start
        expected = torch.autograd.grad(graph(python_add, x), [x])[0]
        assert torch.allclose(autograd.get_gradients(context_id)[x], expected)
    return seconds
