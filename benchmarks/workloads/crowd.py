"""Many processes that call one server at the same time, small synchronous calls each."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks import casts
from benchmarks.functions import python_add, small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, Results, check_answer

METRICS = (Metric("crowd", "16 client processes, sync calls of a Python function", "1/s", is_rate=True, target=4.0),)
WARMUP = 20


def cast(scale: Scale) -> casts.Cast:
    return casts.crowd(scale.crowd)


def run(client: Client, scale: Scale) -> Results:
    args = small_tensors()
    for _ in range(WARMUP):
        check_answer(client, SERVER, python_add, args)
    client.meet()
    calls, started = 0, time.perf_counter()
    end = started + scale.crowd_seconds
    while time.perf_counter() < end:
        client.rpc.rpc_sync(SERVER, python_add, args=args)
        calls += 1
    return {"crowd": calls / (time.perf_counter() - started)}


def combine(results: Sequence[Results]) -> Results:
    return {"crowd": sum(one["crowd"] for one in results)}
