"""A process of the TensorPipe cluster whose start is measured, as torch's own launcher starts it."""

from __future__ import annotations

import os
import time

from torch.distributed import rpc

from benchmarks.functions import script_add, small_tensors
from benchmarks.workloads.launch import FIRST_CALL


def main() -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    is_job = rank == size - 1
    rpc.init_rpc("job" if is_job else f"worker-{rank}", rank=rank, world_size=size)  # type: ignore[no-untyped-call]
    if is_job:
        rpc.rpc_sync("worker-0", script_add, args=small_tensors())
        print(FIRST_CALL, time.monotonic(), flush=True)
    rpc.shutdown()


if __name__ == "__main__":
    main()
