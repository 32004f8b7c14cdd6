"""The actor-learner example: a program for torch.distributed.rpc, run on zrpc as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "examples" / "actor_learner" / "main.py"


def test_actors_are_served_in_batches() -> None:
    command = [sys.executable, "-m", "zrpc.compat", str(PROGRAM), "--actors", "2", "--episodes", "10"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.search(r"(\d+) moves in (\d+) forward passes", done.stdout)
    assert found is not None, done.stdout
    moves, passes = int(found[1]), int(found[2])
    assert passes < moves <= 2 * passes, "two actors that ask at the same time share a forward pass"
