"""Large tensors there and back: the time of an echo, after the first few of each size."""

from __future__ import annotations

import torch

from benchmarks.functions import python_add, python_echo, small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, check_answer, quantile, time_calls

SIZES = (1, 16, 64, 256)
METRICS = tuple(Metric(f"echo {size}", f"echo of {size} MiB, p50", "ms") for size in SIZES)
WARMUP = 3
"""What comes first pays for memory that is touched for the first time, in every system."""


def run(client: Client, scale: Scale) -> dict[str, float]:
    results = {}
    for _ in range(scale.warmup):  # two zrpc workers agree on lanes meanwhile
        check_answer(client, SERVER, python_add, small_tensors())
    for size in scale.echo_sizes:
        tensor = torch.rand(size << 18)
        assert torch.equal(client.rpc.rpc_sync(SERVER, python_echo, args=(tensor,)), tensor)

        def call(tensor: torch.Tensor = tensor) -> torch.Tensor:
            return client.rpc.rpc_sync(SERVER, python_echo, args=(tensor,))  # type: ignore[no-any-return]

        results[f"echo {size}"] = quantile(time_calls(call, scale.echo_calls, WARMUP), 0.50) * 1e3
    return results
