"""From the launcher's start until the first call of the job has returned, with four workers."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.systems.base import System
from benchmarks.workloads.base import Metric

METRICS = (Metric("launch", "start of a launcher and 4 workers to the first call", "s"),)
WORKERS = 4
FIRST_CALL = "first call returned at"
"""The job prints this and `time.monotonic()`, which all processes of a machine share."""
ROOT = Path(__file__).resolve().parents[2]


class NoFirstCall(Exception):
    """A cluster that ended without one. The message has what it printed."""


def run(system: System, deadline: float) -> dict[str, float]:
    """Seconds; empty when the system is not measured by this. Raises `subprocess.TimeoutExpired`, `NoFirstCall`."""
    with tempfile.TemporaryDirectory() as folder:
        command = system.launch_command(Path(folder), WORKERS)
        if command is None:
            return {}
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=deadline
        )
    line = next((line for line in done.stdout.splitlines() if FIRST_CALL in line), None)
    if done.returncode or line is None:
        raise NoFirstCall(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return {"launch": float(line.rpartition(FIRST_CALL)[2].split()[0]) - started}
