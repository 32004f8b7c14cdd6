"""What is measured, by name. `PAIRED` runs in the client of a pair of processes; `startup` starts clusters of its own."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.scale import Scale
from benchmarks.workloads import backward, bulk, cpu, odd, pipelined, references, startup, sync
from benchmarks.workloads.base import Client, Metric

PAIRED: dict[str, Callable[[Client, Scale], dict[str, float]]] = {
    "sync": sync.run,
    "pipelined": pipelined.run,
    "references": references.run,
    "backward": backward.run,
    "cpu": cpu.run,
    "bulk": bulk.run,
    "odd": odd.run,
}
STARTUP = "startup"
NAMES = (*PAIRED, STARTUP)

METRICS: dict[str, tuple[Metric, ...]] = {
    "sync": sync.METRICS,
    "pipelined": pipelined.METRICS,
    "references": references.METRICS,
    "backward": backward.METRICS,
    "cpu": cpu.METRICS,
    "bulk": bulk.METRICS,
    "odd": odd.METRICS,
    STARTUP: startup.METRICS,
}
