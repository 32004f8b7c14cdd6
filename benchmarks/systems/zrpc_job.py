"""The job of the cluster whose start is measured."""

from __future__ import annotations

import time

import zrpc
from benchmarks.functions import script_add, small_tensors
from benchmarks.workloads.launch import FIRST_CALL


def main() -> None:
    zrpc.rpc_sync("worker-0", script_add, args=small_tensors())
    print(FIRST_CALL, time.monotonic(), flush=True)
