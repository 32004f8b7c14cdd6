"""Large tensors there and back over TCP, as between two hosts, not encrypted."""

from __future__ import annotations

from benchmarks.casts import UNENCRYPTED, Cast
from benchmarks.scale import Scale
from benchmarks.workloads.base import Client, Metric, only
from benchmarks.workloads.bulk import time_echo

METRICS = (Metric("network plain", "echo of 64 MiB over TCP, not encrypted, p50", "ms", target=0.5),)
combine = only


def cast(_scale: Scale) -> Cast:
    return Cast(settings=UNENCRYPTED)


def run(client: Client, scale: Scale) -> dict[str, float]:
    return {"network plain": time_echo(client, scale, scale.network_size)}
