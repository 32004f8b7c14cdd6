"""The examples that train: programs written for torch.distributed.rpc, run as they are, and a cluster with latecomers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *command: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("ZRPC_")}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def program(name: str) -> str:
    """The path of a program that names zrpc nowhere but in how it is run."""
    path = ROOT / "examples" / name / "main.py"
    assert "zrpc" not in path.read_text().replace("python -m zrpc.compat", "")
    return str(path)


def test_a_recurrent_network_with_its_tables_elsewhere(tmp_path: Path) -> None:
    said = run(tmp_path, "zrpc.compat", program("rnn"), "--steps", "60")
    found = re.search(r"60 steps: loss (\S+) -> (\S+), (\d+)% of the next tokens right", said)
    assert found is not None, said
    assert float(found[2]) < float(found[1]) / 4
    assert int(found[3]) > 90


def test_a_pipeline_with_micro_batches(tmp_path: Path) -> None:
    said = run(tmp_path, "zrpc.compat", program("pipeline"), "--micro-batches", "3", "--steps", "20")
    found = re.search(r"at most (\S+) from the losses in one process", said)
    assert found is not None, said
    assert float(found[1]) < 1e-4


def test_trainers_that_join_late(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "late_trainers.yaml")
    said = run(tmp_path, "zrpc.cli.main", "launch", config, "--set", "job.args.steps=200")
    joined = [(name, int(step)) for name, step in re.findall(r"(trainer-\d) has joined at step (\d+)", said)]
    assert [name for name, _ in joined] == ["trainer-0", "trainer-1", "trainer-2"]
    assert joined[0][1] == 0
    assert 0 < joined[1][1] < joined[2][1], "the others were training"
    made = re.search(r"(\d+) steps \(trainer-0 (\d+), trainer-1 (\d+), trainer-2 (\d+)\)", said)
    assert made is not None, said
    assert int(made[1]) >= joined[2][1] + 600
    assert all(int(steps) >= 200 for steps in made.groups()[1:])
    accuracy = re.search(r"test accuracy (\d\.\d+) on 359 pictures", said)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.95
    assert list(tmp_path.iterdir()) == []
