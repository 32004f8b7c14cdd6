"""Calls per second of one caller that starts thousands before it waits for the first."""

from __future__ import annotations

import time

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import FUNCTIONS, Client, Metric, check_answer, only

TARGETS = {"TorchScript": 4.0, "Python": 8.0}
METRICS = tuple(
    Metric(f"pipelined {kind}", f"pipelined calls, {kind}", "1/s", is_rate=True, target=TARGETS[kind])
    for kind in FUNCTIONS
)
combine = only


def cast(_scale: Scale) -> Cast:
    return PAIR


def run(client: Client, scale: Scale) -> dict[str, float]:
    args = small_tensors()
    results = {}
    for kind in client.kinds:
        function = FUNCTIONS[kind]
        check_answer(client, SERVER, function, args)
        for count in (min(scale.warmup, scale.outstanding), scale.outstanding):
            start = time.perf_counter()
            futures = [client.rpc.rpc_async(SERVER, function, args=args) for _ in range(count)]
            for future in futures:
                future.wait()
            results[f"pipelined {kind}"] = count / (time.perf_counter() - start)
    return results
