"""The chaos starts, counts and ends. Whether promises hold under it is for longer runs than a test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chaos.namespaces import NotPermitted, ip

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.integration
def test_a_short_calm_run() -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.chaos",
        "--calm",
        "--no-namespaces",
        "--minutes",
        "0.05",
        "--workers",
        "2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout[done.stdout.index("{") :])
    assert summary["calls made"] == sum(summary["ended by"].values()) > 0
    assert summary["python functions run"] > 0
    assert (summary["hung"], summary["run twice"], summary["faults"]) == (0, 0, {})


def test_what_is_not_permitted_says_why() -> None:
    with pytest.raises(NotPermitted, match="ip netns exec nobody-has-this true: "):
        ip("netns", "exec", "nobody-has-this", "true")
