"""The quickstart, as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


def test_quickstart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zrpc.cli.main", "launch", "configs/quickstart.yaml"],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = [line.partition(" | ")[2] for line in done.stdout.splitlines() if line.startswith("job ")]
    text = "\n".join(job)
    assert len(re.findall(r"^step +\d+/250  loss \d\.\d+  test accuracy \d\.\d+$", text, re.MULTILINE)) == 5
    for worker in ("stage-0", "stage-1"):
        row = next(line for line in job if worker in line)
        calls, kib_in, kib_out, _busy = [cell.strip().replace(",", "") for cell in row.strip("│ ").split("│")[1:]]
        assert int(calls) >= 250
        assert int(kib_in) > 1000
        assert int(kib_out) > 1000
    accuracy = re.search(r"^test accuracy (\d\.\d+) on 359 pictures", text, re.MULTILINE)
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.97
    assert re.search(r"calls in \d+\.\d s: [\d,]+ calls per second", text)
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
