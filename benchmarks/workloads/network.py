"""Large tensors there and back over TCP, as between two hosts, encrypted."""

from __future__ import annotations

from benchmarks.casts import NETWORK, Cast
from benchmarks.scale import Scale
from benchmarks.workloads.base import Client, Metric, only
from benchmarks.workloads.bulk import time_echo

METRICS = (Metric("network encrypted", "echo of 64 MiB over TCP, encrypted, p50", "ms", target=1.0),)
combine = only


def cast(_scale: Scale) -> Cast:
    return Cast(settings=NETWORK)


def run(client: Client, scale: Scale) -> dict[str, float]:
    return {"network encrypted": time_echo(client, scale, scale.network_size)}
