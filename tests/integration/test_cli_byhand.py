"""A broker and a worker started by hand form a cluster that the other commands find and use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.integration


def zrpc(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ZRPC_")}
    return subprocess.Popen(
        [sys.executable, "-m", "zrpc.cli.main", *arguments],
        cwd=tmp_path,
        env={**environ, "XDG_RUNTIME_DIR": str(tmp_path / "runtime")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def serving(tmp_path: Path, text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with zrpc(tmp_path, *arguments) as process:
        try:
            assert process.stdout is not None
            assert any(text in line for line in process.stdout)
            yield process
        finally:
            process.kill()


def ask(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    with zrpc(tmp_path, *arguments) as process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_by_hand(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "here.py").write_text("def greet(name, times=1):\n    return f'hello {name}! ' * times\n")
    with (
        serving(tmp_path, "start workers with", "broker", "--new-key", "cluster.key", "--expect", "a,b") as broker,
        serving(tmp_path, "worker b has joined", "worker", "b", "--role", "demo", "--import", "here") as worker,
    ):
        code, output = ask(tmp_path, "call", "b", "here:greet", "you", "times=2")
        assert (code, output) == (0, "hello you! hello you! \n")
        code, output = ask(tmp_path, "status", "--json")
        (member,) = json.loads(output)["members"]
        assert (code, member["name"], member["id"], member["role"]) == (0, "b", 1, "demo")
        code, output = ask(tmp_path, "doctor")
        assert code == 0, output
        code, output = ask(tmp_path, "stop")
        assert (code, output) == (0, "asked to stop: b\n")
        assert worker.wait(30) == 0
        assert broker.wait(30) == 0
    assert (tmp_path / "cluster.key").exists()
    assert list((tmp_path / "runtime").iterdir()) == []


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), 3.0))
        self.count = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    @torch.jit.export
    def next(self) -> int:
        self.count += 1
        return self.count


SERVED = """
cluster: served
roles:
  model:
    script: model.pt
    options: {codecs: [script, builtin], accept_code: false}
"""


def test_a_saved_script_file_is_served(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "served.yaml").write_text(SERVED)
    torch.jit.script(Counter()).save(str(tmp_path / "model.pt"))
    with serving(tmp_path, "1 worker is up", "launch", "served.yaml") as launcher:
        assert ask(tmp_path, "call", "model", "model.next") == (0, "1\n")
        assert ask(tmp_path, "call", "model", "model.next") == (0, "2\n")
        code, output = ask(tmp_path, "call", "model", "model.forward", "tensor([1., 2.])")
        assert (code, "tensor([3., 6.]" in output) == (0, True), output
        code, output = ask(tmp_path, "call", "model", "os:getpid")
        assert (code, "CodecRefused" in output) == (5, True), output
        code, output = ask(tmp_path, "stop")
        assert (code, output) == (0, "asked to stop: model\n")
        launcher.communicate(timeout=30)
        assert launcher.returncode == 0
