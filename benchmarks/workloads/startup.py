"""From `init_rpc` to the first reply, with workers that start together. They have imported torch and the system before."""

from __future__ import annotations

import time

from benchmarks import casts
from benchmarks.functions import python_add, small_tensors
from benchmarks.scale import Scale
from benchmarks.workloads.base import Client, Metric, check_answer, only

METRICS = (Metric("startup", "init_rpc to first reply, 8 workers", "ms", target=0.7),)
combine = only


def cast(scale: Scale) -> casts.Cast:
    return casts.workers(scale.group)


def run(client: Client, scale: Scale) -> dict[str, float]:
    check_answer(client, "worker-0", python_add, small_tensors())
    return {"startup": (time.monotonic() - client.began) * 1e3}
