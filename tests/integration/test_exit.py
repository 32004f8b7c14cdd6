"""Programs that end without `shutdown`, with calls and threads under way."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

PROGRAM = """
import threading, time
import zrpc
from zrpc import TensorPipeRpcBackendOptions

if __name__ == "__main__":
    import sys
    zrpc.init_rpc("alone", rank=0, world_size=1,
                  rpc_backend_options=TensorPipeRpcBackendOptions(init_method="file://" + sys.argv[1]))
    for _ in range(4):
        threading.Thread(target=lambda: zrpc.rpc_async("alone", time.sleep, args=(1,)).wait(), daemon=True).start()
    held = zrpc.remote("alone", list, args=((1, 2),))
    print(held.to_here(), flush=True)
"""


def test_a_program_that_forgets_to_shut_down_ends_well(tmp_path: object) -> None:
    command = [sys.executable, "-c", PROGRAM, f"{tmp_path}/meet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[1, 2]\n"), done.stderr[-3000:]
    assert "terminate called" not in done.stderr
