"""What is measured, by name. All but `launch`, which starts clusters of its own, run in the clients of a cast."""

from __future__ import annotations

from benchmarks.workloads import (
    backward,
    bulk,
    cpu,
    crowd,
    huge,
    launch,
    network,
    odd,
    pipelined,
    plain,
    references,
    stages,
    startup,
    sync,
)
from benchmarks.workloads.base import Metric, Workload

STAGED: dict[str, Workload] = {
    "sync": sync,
    "pipelined": pipelined,
    "references": references,
    "cpu": cpu,
    "bulk": bulk,
    "odd": odd,
    "backward": backward,
    "plain": plain,
    "network": network,
    "crowd": crowd,
    "stages": stages,
    "startup": startup,
    "huge": huge,
}
LAUNCH, HUGE = "launch", "huge"
NAMES = (*STAGED, LAUNCH)

METRICS: dict[str, tuple[Metric, ...]] = {
    **{name: workload.METRICS for name, workload in STAGED.items()},
    LAUNCH: launch.METRICS,
}
