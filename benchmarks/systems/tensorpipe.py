"""`torch.distributed.rpc` with its TensorPipe backend: with its default transports, or with one that it is told.

By default it moves small messages through shared memory that it polls without rest; `tensorpipe-uv` is the same without
that, over sockets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import autograd, rpc

from benchmarks.systems.base import CALL_TIMEOUT, Meeting, Rpc


class TensorPipe:
    """TensorPipe with some transports, all that there are if none is named."""

    kinds = ("TorchScript", "Python")

    def __init__(self, transports: list[str]) -> None:
        self.transports = transports or None
        self.autograd = autograd

    @contextmanager
    def meet(self, folder: Path, settings: Mapping[str, str]) -> Iterator[Meeting]:
        yield {"init_method": f"file://{folder / 'store'}"}

    def join(self, name: str, ranks: Mapping[str, int], meeting: Meeting) -> Rpc:
        options = rpc.TensorPipeRpcBackendOptions(
            init_method=meeting["init_method"], rpc_timeout=CALL_TIMEOUT, _transports=self.transports
        )
        rpc.init_rpc(name, rank=ranks[name], world_size=len(ranks), rpc_backend_options=options)  # type: ignore[no-untyped-call]
        functions: Rpc = rpc  # type: ignore[assignment]
        return functions

    def leave(self) -> None:
        rpc.shutdown(graceful=False)

    def launch_command(self, folder: Path, workers: int) -> list[str] | None:
        options = ["--standalone", f"--nproc-per-node={workers + 1}", "--no-python"]
        script = [sys.executable, "-m", "benchmarks.systems.tensorpipe_job"]
        return [sys.executable, "-m", "torch.distributed.run", *options, *script]


def system(variant: str) -> TensorPipe:
    """`tensorpipe`, or `tensorpipe-TRANSPORT`."""
    return TensorPipe([variant] if variant else [])
