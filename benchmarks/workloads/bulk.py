"""Large tensors there and back: the time of an echo, after the first few of each size."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import python_add, python_echo, small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, check_answer, only, quantile, time_calls

TARGETS = {1: 0.7, 16: 0.7, 64: 0.15, 256: 0.15}
METRICS = tuple(
    Metric(f"echo {size}", f"echo of {size} MiB, p50", "ms", target=target) for size, target in TARGETS.items()
)
WARMUP = 3
"""What comes first pays for memory that is touched for the first time, in every system."""
combine = only


def cast(_scale: Scale) -> Cast:
    return PAIR


def run(client: Client, scale: Scale) -> dict[str, float]:
    return {f"echo {size}": time_echo(client, scale, size) for size in scale.echo_sizes}


def time_echo(client: Client, scale: Scale, size: int) -> float:
    """Milliseconds of an echo of so many MiB."""
    for _ in range(scale.warmup):  # two zrpc workers agree on lanes meanwhile
        check_answer(client, SERVER, python_add, small_tensors())
    tensor = torch.rand(size << 18)
    call = partial(client.rpc.rpc_sync, SERVER, python_echo, args=(tensor,))
    assert torch.equal(call(), tensor)
    return quantile(time_calls(call, scale.echo_calls, WARMUP, scale.echo_seconds), 0.50) * 1e3
