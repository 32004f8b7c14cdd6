"""A pipeline of objects on several workers: each item goes through all of them, and many are under way."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks import casts
from benchmarks.functions import Stage
from benchmarks.scale import Scale
from benchmarks.workloads.base import Client, Metric, only

METRICS = (Metric("stages", "pipeline of 4 RRefs on 4 workers, items of 1 MiB", "1/s", is_rate=True, target=2.0),)
AHEAD = 8
"""Items under way."""
combine = only


def cast(scale: Scale) -> casts.Cast:
    return casts.workers(scale.stages)


def run(client: Client, scale: Scale) -> dict[str, float]:
    stages = [client.rpc.remote(f"worker-{number}", Stage) for number in range(scale.stages)]
    x = torch.rand(1 << 18)
    assert torch.allclose(_send(stages, x).wait(), x + scale.stages)
    for count in (AHEAD, scale.items):
        started = time.perf_counter()
        _run(stages, x, count)
        taken = time.perf_counter() - started
    return {"stages": count / taken}


def _run(stages: list[Any], x: torch.Tensor, count: int) -> None:
    under_way: list[Any] = []
    for _ in range(count):
        if len(under_way) == AHEAD:
            under_way.pop(0).wait()
        under_way.append(_send(stages, x))
    for future in under_way:
        future.wait()


def _send(stages: list[Any], x: torch.Tensor) -> Any:
    """A future of what comes out of the last stage: each result goes on to the next stage when it is there."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()

    def go_on(index: int, value: torch.Tensor) -> None:
        if index == len(stages):
            done.set_result(value)
            return

        def then(future: Any) -> None:
            try:
                go_on(index + 1, future.value())
            except Exception as error:
                done.set_exception(error)

        stages[index].rpc_async().step(value).add_done_callback(then)

    go_on(0, x)
    return done
