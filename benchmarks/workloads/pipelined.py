"""Calls per second of one caller that starts thousands before it waits for the first."""

from __future__ import annotations

import time

from benchmarks.functions import small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import FUNCTIONS, Client, Metric, check_answer

METRICS = tuple(Metric(f"pipelined {kind}", f"pipelined calls, {kind}", "1/s", is_rate=True) for kind in FUNCTIONS)


def run(client: Client, scale: Scale) -> dict[str, float]:
    args = small_tensors()
    results = {}
    for kind, function in FUNCTIONS.items():
        check_answer(client, SERVER, function, args)
        for count in (min(scale.warmup, scale.outstanding), scale.outstanding):
            start = time.perf_counter()
            futures = [client.rpc.rpc_async(SERVER, function, args=args) for _ in range(count)]
            for future in futures:
                future.wait()
            results[f"pipelined {kind}"] = count / (time.perf_counter() - start)
    return results
