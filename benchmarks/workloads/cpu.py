"""What calls cost, and what it costs to wait for one: processor time of all of the system's processes."""

from __future__ import annotations

import time

import psutil

from benchmarks.functions import script_add, small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric

METRICS = (
    Metric("cpu per call", "processor time of a sync call, TorchScript, all processes", "us"),
    Metric("cpu idle", "processor use of an idle pair, all processes", "%"),
)


def run(client: Client, scale: Scale) -> dict[str, float]:
    processes = [psutil.Process(pid) for pid in client.pids]
    args = small_tensors()
    for _ in range(scale.warmup):
        client.rpc.rpc_sync(SERVER, script_add, args=args)
    before = _seconds(processes)
    for _ in range(scale.sync_calls):
        client.rpc.rpc_sync(SERVER, script_add, args=args)
    after_calls = _seconds(processes)
    time.sleep(scale.idle_seconds / 4)  # what is left of the calls is done: releases, acknowledgements
    before_idle, started = _seconds(processes), time.perf_counter()
    time.sleep(scale.idle_seconds)  # what is measured is that nothing happens
    after_idle, ended = _seconds(processes), time.perf_counter()
    return {
        "cpu per call": (after_calls - before) / scale.sync_calls * 1e6,
        "cpu idle": (after_idle - before_idle) / (ended - started) * 100,
    }


def _seconds(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(used.user + used.system for used in times)
