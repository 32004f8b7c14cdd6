"""The soak starts, counts and judges. Whether memory stays flat is for longer runs than a test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.memory import holdings, slope
from benchmarks.soak.__main__ import judge

ROOT = Path(__file__).resolve().parents[2]


def samples(rises: float) -> list[dict[str, Any]]:
    """Looks at a worker whose resident memory rises by a part of itself over the second half."""
    found = []
    for index in range(41):
        late = max(0, index - 20) / 20
        found.append(
            {
                "time": index,
                "resident": 1e8 * (1 + rises * late),
                "in_use": 5e7,
                "python_blocks": 1e5,
                "descriptors": 40,
            }
        )
    return found


def test_what_rises_is_seen() -> None:
    assert all(kind["is_flat"] for kind in judge(samples(0.02)).values())
    verdict = judge(samples(0.1))
    assert not verdict["resident"]["is_flat"]
    assert verdict["in_use"]["is_flat"]
    assert not any(kind["is_flat"] for kind in judge([]).values())


def test_a_slope() -> None:
    assert slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) == 2.0
    assert slope([(1.0, 1.0)]) == slope([]) == 0.0


def test_what_a_process_holds() -> None:
    before = holdings()
    kept = [object() for _ in range(10_000)]
    with open(__file__):
        after = holdings()
    assert after["python_blocks"] >= before["python_blocks"] + len(kept) // 2
    assert after["descriptors"] == before["descriptors"] + 1
    assert after["resident"] >= after["private"] > 0


@pytest.mark.integration
def test_a_short_run() -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.1", "--callers", "1", "--every", "0.2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    summary = json.loads(done.stdout[done.stdout.index("{") :])
    assert summary["made"] > 0
    assert summary["looks"] > 0
    assert done.returncode == (0 if summary["flat"] else 1)
