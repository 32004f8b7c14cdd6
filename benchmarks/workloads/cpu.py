"""What calls cost, and what it costs to wait for one: processor time of all of the system's processes."""

from __future__ import annotations

import time

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import script_add, small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, only, processor_seconds

METRICS = (
    Metric("cpu per call", "processor time of a sync call, TorchScript, both sides", "us", target=0.4),
    Metric("cpu per pipelined call", "processor time of a pipelined call, TorchScript, both sides", "us", target=0.4),
    Metric("cpu idle", "processor use of an idle pair", "%", limit=1.0),
)
combine = only


def cast(_scale: Scale) -> Cast:
    return PAIR


def run(client: Client, scale: Scale) -> dict[str, float]:
    args = small_tensors()
    for _ in range(scale.warmup):
        client.rpc.rpc_sync(SERVER, script_add, args=args)
    at_start = processor_seconds(client.pids)
    for _ in range(scale.sync_calls):
        client.rpc.rpc_sync(SERVER, script_add, args=args)
    after_sync = processor_seconds(client.pids)
    futures = [client.rpc.rpc_async(SERVER, script_add, args=args) for _ in range(scale.outstanding)]
    for future in futures:
        future.wait()
    after_pipelined = processor_seconds(client.pids)
    del futures
    time.sleep(scale.idle_seconds)  # what is left of the calls is done: releases, acknowledgements
    before_idle, started = processor_seconds(client.pids), time.perf_counter()
    time.sleep(scale.idle_seconds)  # what is measured is that nothing happens
    after_idle, ended = processor_seconds(client.pids), time.perf_counter()
    return {
        "cpu per call": (after_sync - at_start) / scale.sync_calls * 1e6,
        "cpu per pipelined call": (after_pipelined - after_sync) / scale.outstanding * 1e6,
        "cpu idle": (after_idle - before_idle) / (ended - started) * 100,
    }
