"""A result that stays on the server, and is then fetched: `remote` and `to_here`."""

from __future__ import annotations

from benchmarks.casts import PAIR, Cast
from benchmarks.functions import script_add, small_tensors
from benchmarks.scale import Scale
from benchmarks.systems.base import SERVER
from benchmarks.workloads.base import Client, Metric, only, quantile, time_calls

METRICS = (Metric("remote p50", "remote + to_here, TorchScript, p50", "us", target=0.6),)
combine = only


def cast(_scale: Scale) -> Cast:
    return PAIR


def run(client: Client, scale: Scale) -> dict[str, float]:
    args = small_tensors()
    seconds = time_calls(
        lambda: client.rpc.remote(SERVER, script_add, args=args).to_here(), scale.remote_calls, scale.warmup
    )
    return {"remote p50": quantile(seconds, 0.50) * 1e6}
