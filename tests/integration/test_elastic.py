"""The elastic example, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


def test_training_goes_on_while_trainers_are_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zrpc.cli.main", "launch", "configs/elastic.yaml", "--set", "job.args.kills=2"],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "ELASTIC_STATE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=160,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.search(r"(\d+) trainers were killed; (\d+) died, (\d+) left, (\d+) came back", done.stdout)
    assert killed is not None, done.stdout
    count, died, left, came_back = map(int, killed.groups())
    assert count >= 2
    assert died >= 1
    assert left >= 1
    assert came_back >= 2
    assert re.search(r"trainer-\d was killed by SIGKILL; its last lines:", done.stdout)
    places = [int(path.read_text()) for path in tmp_path.glob("trainer-*.place")]
    assert max(places) >= 1, "the checkpoints of those that were told to stop"
    accuracy = re.search(r"test accuracy (\d\.\d+)", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.95
