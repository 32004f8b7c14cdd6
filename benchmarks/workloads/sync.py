"""The round trip of a small synchronous call: one caller, which waits for each answer."""

from __future__ import annotations

from functools import partial

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import FUNCTIONS, Client, Metric, check_answer, only, quantile, time_calls

TARGETS = {"TorchScript p50": 0.5, "TorchScript p99": 1.0, "Python p50": 0.35}
METRICS = tuple(
    Metric(f"sync {kind} {name}", f"sync call, {kind}, {name}", "us", target=TARGETS.get(f"{kind} {name}"))
    for kind in FUNCTIONS
    for name in ("p50", "p99")
)
combine = only


def cast(_scale: Scale) -> Cast:
    return PAIR


def run(client: Client, scale: Scale) -> dict[str, float]:
    args = small_tensors()
    results = {}
    for kind in client.kinds:
        function = FUNCTIONS[kind]
        check_answer(client, SERVER, function, args)
        call = partial(client.rpc.rpc_sync, SERVER, function, args=args)
        seconds = time_calls(call, scale.sync_calls, scale.warmup)
        results[f"sync {kind} p50"] = quantile(seconds, 0.50) * 1e6
        results[f"sync {kind} p99"] = quantile(seconds, 0.99) * 1e6
    return results
