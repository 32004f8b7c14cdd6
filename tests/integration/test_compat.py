"""Programs that were written for torch's RPC, unchanged; and zrpc in a torch that has no RPC inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, sys
import torch
import torch.distributed.rpc as rpc
from torch.distributed.rpc import RRef, rpc_sync
from torch.distributed.rpc.functions import async_execution
import torch.multiprocessing as mp

def add(a, b):
    return a + b

@async_execution
def later(a):
    return rpc.rpc_async(rpc.get_worker_info(), add, args=(a, 1))

def run(rank, path):
    options = rpc.TensorPipeRpcBackendOptions(init_method="file://" + path)
    rpc.init_rpc(f"w{rank}", rank=rank, world_size=2, rpc_backend_options=options)
    if rank == 0:
        ref = rpc.remote("w1", add, args=(RRef(20).to_here(), 1))
        agent = type(rpc.api._get_current_rpc_agent()).__module__
        print(agent, rpc_sync("w1", later, args=(torch.ones(1),)).item(), ref.to_here(), sys.argv)
    rpc.shutdown()

if __name__ == "__main__":
    mp.spawn(run, args=(sys.argv[1],), nprocs=2)
"""


def python(tmp_path: Path, *arguments: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ZRPC_")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env={**environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_program_and_the_processes_that_it_spawns(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    said = python(tmp_path, "-m", "zrpc.compat", "program.py", str(tmp_path / "meet"), "x")
    assert f"zrpc.debug 2.0 21 ['program.py', '{tmp_path / 'meet'}', 'x']" in said.splitlines()
    line = PROGRAM.splitlines().index('        ref = rpc.remote("w1", add, args=(RRef(20).to_here(), 1))') + 1
    assert f"  1 to a value of 'w1': remote(add) at {tmp_path / 'program.py'}:{line} in run" in said.splitlines()


def test_the_parameter_server_is_not_changed(tmp_path: Path) -> None:
    path = ROOT / "examples" / "parameter_server" / "train.py"
    assert "zrpc" not in path.read_text().replace("python -m zrpc.compat", "")
    assert "off by at most 0.0" in python(tmp_path, "-m", "zrpc.compat", str(path))


def test_in_a_torch_without_rpc(tmp_path: Path) -> None:
    path = ROOT / "tests" / "compat" / "without_rpc.py"
    assert python(tmp_path, str(path), f"file://{tmp_path}/meet").splitlines()[-1] == "done"


def test_a_process_without_torch_notices_nothing(tmp_path: Path) -> None:
    program = "import zrpc.compat, os, subprocess, sys; zrpc.compat.install(); " + (
        "subprocess.run([sys.executable, '-c', 'import sys; print(any(m.startswith(\"zrpc\") for m in sys.modules))'])"
    )
    assert python(tmp_path, "-c", program).split() == ["False"]
