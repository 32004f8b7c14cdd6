"""zrpc: a broker beside the two processes, as `zrpc launch` has it; encrypted, as it always is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zrpc
from benchmarks.systems.base import RANKS, Meeting, Rpc
from zrpc.broker.server import BrokerServer
from zrpc.transport.curve import new_keyring, write_key_file
from zrpc.transport.router import ZmqTransport

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = """\
cluster: benchmark
python_path: [{root}]
roles:
  worker: {{count: {workers}, name: "worker-{{index}}", import: [benchmarks.functions]}}
job:
  entry: benchmarks.systems.zrpc_job:main
"""


class Zrpc:
    """zrpc with its defaults."""

    autograd = zrpc.autograd

    @contextmanager
    def meet(self, folder: Path) -> Iterator[Meeting]:
        keyring = new_keyring("benchmark")
        key_file = write_key_file(keyring, folder / "key")
        transport = ZmqTransport(keyring, "broker")
        broker = BrokerServer(transport, "tcp://127.0.0.1:0", cluster="benchmark")
        broker.start()
        try:
            yield {"broker": broker.address, "key_file": str(key_file)}
        finally:
            broker.stop()
            transport.close()

    def join(self, name: str, meeting: Meeting) -> Rpc:
        broker, key_file = meeting["broker"], meeting["key_file"]
        zrpc.init_rpc(name, rank=RANKS[name], world_size=len(RANKS), broker=broker, key_file=key_file)
        return zrpc

    def leave(self) -> None:
        zrpc.shutdown(graceful=False)

    def launch_command(self, folder: Path, workers: int) -> list[str] | None:
        config = folder / "cluster.yaml"
        config.write_text(CLUSTER.format(root=ROOT, workers=workers))
        run_folder = str(folder / "run")
        return [sys.executable, "-m", "zrpc.cli.main", "launch", str(config), "--run-dir", run_folder]


def system(variant: str) -> Zrpc:
    """`zrpc` has one variant."""
    assert not variant
    return Zrpc()
