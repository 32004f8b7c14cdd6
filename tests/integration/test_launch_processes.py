"""The guard and the spawner, with real processes that import nothing."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from zrpc.launch.processes import GuardedSpawner, Program

pytestmark = pytest.mark.integration
PATIENCE = 60.0

GRANDPARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
print(child.pid, flush=True)
if len(sys.argv) > 1:
    sys.exit(int(sys.argv[1]))
child.wait()
"""
LAUNCHER = """
import sys
from zrpc.launch.processes import GuardedSpawner, Program
child = GuardedSpawner().spawn(Program("grandparent"), lambda code: None)
import os, select
select.select([child.output], [], [], 60)
print(child.pid, os.read(child.output, 100).decode(), flush=True)
select.select([], [], [], 60)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "grandparent.py").write_text(GRANDPARENT)
    (tmp_path / "gated.py").write_text("import os\nos.read(int(os.environ['ZRPC_GATE']), 9)\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def wait_gone(pid: int) -> None:
    try:
        psutil.Process(pid).wait(PATIENCE)
    except psutil.NoSuchProcess:
        pass


def read_pid(output: int) -> int:
    os.set_blocking(output, True)
    return int(os.read(output, 100))


@pytest.mark.parametrize(
    ("arguments", "order", "expected"), [((), "kill", -9), ((), "terminate", -15), (("3",), "", 3)]
)
def test_a_process_takes_its_own_with_it(
    environment: dict[str, str], arguments: tuple[str, ...], order: str, expected: int
) -> None:
    codes: queue.Queue[int] = queue.Queue()
    child = GuardedSpawner().spawn(Program("grandparent", arguments, environment), codes.put)
    grandchild = read_pid(child.output)
    if order:
        getattr(child, order)()
    assert codes.get(timeout=PATIENCE) == expected
    wait_gone(grandchild)
    child.kill()  # too late, and no harm
    child.close()


def test_a_gate(environment: dict[str, str]) -> None:
    codes: queue.Queue[int] = queue.Queue()
    child = GuardedSpawner().spawn(Program("gated", (), environment, gated=True), codes.put)
    child.release()
    child.release()
    assert codes.get(timeout=PATIENCE) == 0
    child.close()


def test_nothing_outlives_a_killed_launcher(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "launcher.py").write_text(
        LAUNCHER.replace('Program("grandparent")', f"Program('grandparent', (), {environment!r})")
    )
    with subprocess.Popen([sys.executable, str(tmp_path / "launcher.py")], stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None
        pids = [int(word) for word in launcher.stdout.readline().split()]
        assert len(pids) == 2
        launcher.send_signal(signal.SIGKILL)
        for pid in pids:
            wait_gone(pid)
