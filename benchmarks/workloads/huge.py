"""A tensor of 4 GiB, as an argument. Not measured where there is no memory for it, three times over."""

from __future__ import annotations

import time

import torch

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import python_count
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, available_memory, only

METRICS = (Metric("huge", "call with a tensor of 4 GiB", "s"),)
BYTES = 4 << 30
combine = only


def cast(_scale: Scale) -> Cast:
    return PAIR


def run(client: Client, scale: Scale) -> dict[str, float]:
    size = BYTES // scale.odd_part
    if available_memory() < 3 * size:
        return {}
    tensor = torch.empty(size, dtype=torch.uint8).fill_(7)
    started = time.perf_counter()
    assert client.rpc.rpc_sync(SERVER, python_count, args=(tensor,)) == size
    return {"huge": time.perf_counter() - started}
