"""zrpc: a broker beside the two processes, as `zrpc launch` has it; encrypted, unless it is told not to be."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import zrpc
from benchmarks.systems.base import CALL_TIMEOUT, Meeting, Rpc
from zrpc.api import init_rpc
from zrpc.broker.server import BrokerServer
from zrpc.options import AgentOptions
from zrpc.protocol.membership import RegistryOptions
from zrpc.transport.curve import new_keyring, write_key_file
from zrpc.transport.router import ZmqTransport

PATIENT = RegistryOptions(death_timeout=60.0, silence_timeout=120.0, loss_grace=20.0)
"""For more processes than the machine can run in time: nobody is taken for dead who only waits for a core."""
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
    """zrpc with its defaults, or as it is told."""

    autograd = zrpc.autograd
    kinds = ("TorchScript", "Python")

    @contextmanager
    def meet(self, folder: Path, settings: Mapping[str, str]) -> Iterator[Meeting]:
        keyring = None if settings.get("security") == "off" else new_keyring("benchmark")
        key_file = "" if keyring is None else str(write_key_file(keyring, folder / "key"))
        times = PATIENT if settings.get("times") == "patient" else RegistryOptions()
        transport = ZmqTransport(keyring, "broker", broker_heartbeats_ms=times.connection_heartbeats_ms)
        broker = BrokerServer(transport, "tcp://127.0.0.1:0", cluster="benchmark", options=times)
        broker.start()
        try:
            yield {"broker": broker.address, "key_file": key_file, **settings}
        finally:
            broker.stop()
            transport.close()

    def join(self, name: str, ranks: Mapping[str, int], meeting: Meeting) -> Rpc:
        options = AgentOptions(
            rpc_timeout=CALL_TIMEOUT,
            security=meeting.get("security") != "off",
            lanes=meeting.get("network") != "tcp",
        )
        init_rpc(
            name,
            rank=ranks[name],
            world_size=len(ranks),
            broker=meeting["broker"],
            key_file=meeting["key_file"],
            options=options,
        )
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
