"""Messages of an odd kind: very many small tensors, a model's state, what is not contiguous or not dense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import python_count
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, only, quantile, time_calls


def _diagonal(size: int) -> torch.Tensor:
    indices = torch.arange(size)
    return torch.sparse_coo_tensor(torch.stack((indices, indices)), torch.rand(size), (size, size)).coalesce()


VALUES: dict[str, tuple[str, Callable[[int], Any]]] = {
    "many": ("10,000 tensors of 8 numbers", lambda part: [torch.rand(8) for _ in range(10_000 // part)]),
    "state": (
        "a state_dict of 500 tensors, 8 MiB",
        lambda part: {str(n): torch.rand(64, 64) for n in range(max(1, 500 // part))},
    ),
    "strided": ("a transposed tensor of 4 MiB", lambda part: torch.rand(max(1, 1024 // part), 1024).t()),
    "sparse": ("a sparse tensor of 100,000 numbers", lambda part: _diagonal(100_000 // part)),
}
METRICS = tuple(Metric(f"odd {key}", f"call with {title}, p50", "ms") for key, (title, _) in VALUES.items())
combine = only


def cast(_scale: Scale) -> Cast:
    return PAIR


def run(client: Client, scale: Scale) -> dict[str, float]:
    results = {}
    for key, (_, make) in VALUES.items():
        value = make(scale.odd_part)
        assert client.rpc.rpc_sync(SERVER, python_count, args=(value,)) == python_count(value)

        def call(value: Any = value) -> Any:
            return client.rpc.rpc_sync(SERVER, python_count, args=(value,))

        results[f"odd {key}"] = quantile(time_calls(call, scale.odd_calls, 1), 0.50) * 1e3
    return results
