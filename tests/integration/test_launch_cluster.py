"""Whole clusters by `zrpc launch`: interrupted, with a worker that crashes, with one that comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
SMALL = ["--set", "job.args.steps=1000000"]
STOP_SECONDS = 5.0


@contextmanager
def launched(tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "ZRPC_DEBUG": "0"}
    command = [sys.executable, "-m", "zrpc.cli.main", "launch", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    pytest.fail(f"{text!r} did not come:\n{''.join(lines)}")


@pytest.mark.parametrize(
    ("moment", "signum", "code"),
    [("starting stage-0", signal.SIGINT, 130), ("job     | step", signal.SIGTERM, 143)],
)
def test_an_interrupt_leaves_nothing(tmp_path: Path, moment: str, signum: int, code: int) -> None:
    with launched(tmp_path, str(QUICKSTART), *SMALL) as process:
        read_until(process, moment)
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signum)
        output, _ = process.communicate(timeout=STOP_SECONDS)
        assert process.returncode == code, output
        assert psutil.wait_procs(started, timeout=0)[1] == []
        assert list((tmp_path / "runtime").iterdir()) == []


CRASH = """
def main():
    print("so far so good")
    raise ValueError("and no further")
"""


def test_a_worker_that_crashes_is_named_with_its_last_lines(tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(CRASH)
    (tmp_path / "c.yaml").write_text("roles: {calm: {}, wild: {entry: 'crash:main'}}\njob: {entry: 'signal:pause'}\n")
    with launched(tmp_path, "c.yaml") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 3, output
    blamed = output[output.index("wild ended with exit code 1; its last lines:") :].splitlines()
    assert "zrpc |   so far so good" in blamed
    assert "zrpc |   ValueError: and no further" in blamed
    (kept,) = tmp_path.glob("runtime/zrpc/zrpc-*/logs")
    assert f"logs are kept in {kept}" in output
    assert "ValueError: and no further" in (kept / "wild.log").read_text()
    assert not (kept.parent / "key").exists()


FLAKY = """
from pathlib import Path
import torch

mark = Path(__file__).with_name("failed-once")
if not mark.exists():
    mark.touch()
    raise RuntimeError("the first time")

@torch.jit.script
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2
"""
ASKING = """
import zrpc, torch

def main():
    print(zrpc.rpc_sync("flaky", "__torch__.flaky.double", (torch.ones(2),)).tolist())
"""


def test_a_worker_that_fails_once_comes_back(tmp_path: Path) -> None:
    (tmp_path / "flaky.py").write_text(FLAKY)
    (tmp_path / "asking.py").write_text(ASKING)
    (tmp_path / "c.yaml").write_text(
        "roles: {flaky: {import: [flaky], restart: {policy: on-failure, backoff: 0.1}}}\njob: {entry: 'asking:main'}\n"
    )
    with launched(tmp_path, "c.yaml", "--run-dir", "run") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "flaky: restart 1 of 5 in 0.1 s" in output
    assert "job   | [2.0, 2.0]" in output
    assert "the first time" in (tmp_path / "run" / "logs" / "flaky.log").read_text()
